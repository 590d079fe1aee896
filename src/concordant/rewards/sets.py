"""F-beta of a set of items: how much of the key was found, and how much of what was said is in the key."""

import json
from collections.abc import Collection
from dataclasses import dataclass

from concordant.core.errors import RewardError
from concordant.rewards.extract import extract_answer
from concordant.rewards.grading import missing
from concordant.rewards.patterns import PatternTimeout
from concordant.scoring.reward import Verdict


def f_beta(found: Collection[str], key: Collection[str], beta: float = 1.0) -> float:
    """Return F = (1 + b^2) P R / (b^2 P + R) of two sets, in [0, 1].

    P is the share of `found` that is in `key`, R the share of `key` that was found; `beta` above 1 favours R. Equal
    empty sets give 1.0, one empty set gives 0.0. In counts: (1 + b^2) hits / (b^2 |key| + |found|).

    >>> f_beta({"a", "b"}, {"a", "c", "d"}), f_beta({"a"}, {"a", "b"}, beta=2), f_beta(set(), set())
    (0.4, 0.5555555555555556, 1.0)
    """
    found, key = set(found), set(key)
    if not found or not key:
        return float(found == key)
    hits = len(found & key)
    return (1 + beta**2) * hits / (beta**2 * len(key) + len(found))


@dataclass(frozen=True)
class SetFBeta:
    """Reward the F-beta of the items in the answer against those of the key.

    Range: [0, 1]. Items are the elements of a JSON list, or the parts between separators; white space around them and,
    unless `case=True`, case do not count, and each item counts once. No answer is 0.0. The key may be a list.

    >>> SetFBeta()("<answer>red, blue</answer>", "Red, green"), SetFBeta()('["red"]', ["red"])
    (0.5, 1.0)
    """

    beta: float = 1.0
    separator: str = ","
    """What stands between items that are no JSON list; a line end always separates too."""
    case: bool = False
    """Whether upper and lower case differ."""
    where: str = "auto"
    """Where the completion gives its answer, see `extract_answer`."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf") or not self.separator:
            raise RewardError(
                f"beta must be finite and not negative, separator not empty; got {self.beta}, {self.separator!r}"
            )

    def __call__(self, completion: str, answer: str | list[str]) -> float | Verdict:
        """Judge one completion by its key."""
        try:
            given = extract_answer(completion, self.where)
        except PatternTimeout as error:
            return missing(str(error))
        return 0.0 if given is None else f_beta(self._items(given), self._items(answer), self.beta)

    def _items(self, text: str | list[str]) -> set[str]:
        parts = text if not isinstance(text, str) else _listed(text) or _split(text, self.separator)
        tidy = (" ".join(str(part).split()) for part in parts)
        return {item if self.case else item.casefold() for item in tidy if item}


def _split(text: str, separator: str) -> list[str]:
    return [] if text.strip() == "[]" else text.replace("\n", separator).split(separator)


def _listed(text: str) -> list[str] | None:
    """The elements of a JSON list of strings and numbers, or None."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    plain = isinstance(found, list) and all(isinstance(part, str | int | float) for part in found)
    return [str(part) for part in found] if plain else None
