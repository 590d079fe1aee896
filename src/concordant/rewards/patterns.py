"""Regular expressions on model text, with a limit on the time that a match may take.

Python's `re` cannot be interrupted: a pattern such as `(a|aa)+$` takes exponential time on text that a policy may
write. The `regex` package has the same syntax and more, and a timeout.
"""

from dataclasses import dataclass
from typing import Any

from concordant.core.errors import RewardError
from concordant.scoring.reward import Verdict

SECONDS = 0.5
"""Longest time that a search takes where the caller does not say."""


class PatternTimeout(Exception):
    """A pattern took too long on a text; not transient, because it would again."""


def search(
    pattern: str, text: str, *, last: bool = False, whole: bool = False, seconds: float = SECONDS
) -> Any:
    """Search `text` and return the match object or None.

    Args:
        pattern: in the syntax of the `regex` package, which is that of `re` and more.
        text: what to search.
        last: the last match that does not overlap an earlier one, instead of the first.
        whole: the pattern must match the text from end to end.
        seconds: time limit; beyond it `PatternTimeout` is raised.
    """
    import regex

    compiled = regex.compile(pattern)
    try:
        if whole:
            return compiled.fullmatch(text, timeout=seconds)
        found = None
        for found in compiled.finditer(text, timeout=seconds):  # noqa: B007 (the last one is wanted)
            if not last:
                break
        return found
    except TimeoutError as error:
        raise PatternTimeout(f"the pattern took more than {seconds:g} s") from error


@dataclass(frozen=True)
class Matches:
    r"""Reward 1.0 when a regular expression matches the completion, else 0.0.

    Range: {0, 1}. `whole=True` asks for a match from end to end. Missing, with the reason, when the match takes more
    than `seconds`: neither outcome is known then.

    >>> Matches(r"\d+")("42!"), Matches(r"\d+", whole=True)("42!")
    (1.0, 0.0)
    >>> Matches("(a|aa)+$", seconds=0.01)("a" * 60 + "b").detail["reason"]
    'the pattern took more than 0.01 s'
    """

    pattern: str
    whole: bool = False
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        import regex

        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise RewardError(f"{self.pattern!r} is not a regular expression: {error}") from None

    def __call__(self, completion: str) -> float | Verdict:
        """Judge one completion."""
        try:
            found = search(self.pattern, completion, whole=self.whole, seconds=self.seconds)
        except PatternTimeout as error:
            return Verdict(None, kind="regex", detail={"reason": str(error)})
        return float(found is not None)
