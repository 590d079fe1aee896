"""Hints in the model's own format: partial results of a reference solution, in three levels that give away
more and more.
"""

import re

from concordant.rewards.numbers import read_integer
from concordant.worlds.lm_arithmetic.problems import Problem

LEVELS = 3
_HINTS = re.compile(r"\s*([1-9]):([-0-9 ]*)")


def hint_levels(problem: Problem) -> list[str]:
    """Return the reference hint of every level: the first `level` partial results, never the last one (the
    answer).

    Short problems run out of partial results: their higher levels repeat the last hint. A two-term sum has
    no hint.
    """
    given = [str(value) for value in problem.partials[:-1]]
    return [" ".join(given[:level]) for level in range(1, LEVELS + 1)] if given else []


def write_hints(levels: list[str]) -> str:
    """Return the text in which the policy writes hints, for instance `1:46|2:46 23|3:46 23 114`."""
    return "|".join(f"{level}:{hint}" for level, hint in enumerate(levels, start=1))


def parse_hints(text: str) -> dict[int, str] | None:
    """Read `1:...|2:...|3:...`.

    Returns:
        Hint by level, without empty ones; None when no hint can be read.

    >>> parse_hints("1:46|2:46 23|3:"), parse_hints("no idea")
    ({1: '46', 2: '46 23'}, None)
    """
    hints = {}
    for part in text.split("|"):
        match = _HINTS.fullmatch(part)
        words = match[2].split() if match else []
        if (
            match
            and words
            and int(match[1]) <= LEVELS
            and all(read_integer(value) is not None for value in words)
        ):
            hints[int(match[1])] = " ".join(words)
    return hints or None


def hint_leaks(hint: str, answer: str) -> bool:
    """Tell whether a hint contains the answer itself as one of its numbers.

    >>> hint_leaks("46 23", "23"), hint_leaks("46 23", "2")
    (True, False)
    """
    return read_integer(answer) is not None and read_integer(answer) in [
        read_integer(word) for word in hint.split()
    ]


def write_hint_request(question: str, solution: str) -> str:
    """Return the prompt that asks the policy itself for hints, from the reference solution."""
    return f"hint {question} solution {solution}"


def with_hint(question: str, hint: str) -> str:
    """Return the question with a hint behind it."""
    return f"{question} hint {hint}"
