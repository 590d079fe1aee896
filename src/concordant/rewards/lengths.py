"""Length rewards: shapes that say how long an answer should be.

Each counts tokens where the data has `completion_ids`, the ids that the policy wrote. Without them say
`unit="words"` or `unit="characters"`: nothing switches unit by itself, since the limits would mean something else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from concordant.core.errors import RewardError
from concordant.rewards.maths import math_answer
from concordant.scoring.reward import Verdict, reward

Unit = Literal["tokens", "words", "characters"]
OnlyIf = Literal["all", "correct", "wrong"]
Score = float | Verdict | None


def pieces(completion: str, completion_ids: Sequence[int] | None, unit: Unit) -> Sequence[Any]:
    """Return the units that a completion consists of: token ids, words (between white space) or characters."""
    if unit == "words":
        return completion.split()
    if unit == "characters":
        return completion
    if unit != "tokens":
        raise RewardError(f"unknown unit {unit!r}; known: characters, tokens, words")
    if completion_ids is None:
        raise RewardError(
            "counting tokens needs the field completion_ids; or say unit='words' or 'characters'"
        )
    return completion_ids


def _lengths(completion: Sequence[str], ids: Sequence[Sequence[int]] | None, unit: Unit) -> list[int]:
    """Lengths of the members of a group."""
    if ids is None:
        return [len(pieces(text, None, unit)) for text in completion]
    return [len(pieces(*pair, unit)) for pair in zip(completion, ids, strict=True)]


def length_penalty(length: float, low: float, high: float, power: float = 1.0) -> float:
    """Return p = clip((L - low) / (high - low), 0, 1) ** power, in [0, 1]; more is worse.

    `low == high` is a step: 0 up to and including it, 1 above. [derived; power 1 with `low = max - buffer` and
    `high = max` is minus the soft overlong punishment of DAPO, equation 13, paper]

    >>> [length_penalty(length, 100, 200) for length in (100, 150, 200, 500)]
    [0.0, 0.5, 1.0, 1.0]
    >>> length_penalty(150, 100, 200, power=2), length_penalty(100, 100, 100), length_penalty(101, 100, 100)
    (0.25, 0.0, 1.0)
    """
    if low == high:
        return float(length > low)
    return min(max((length - low) / (high - low), 0.0), 1.0) ** power


def is_correct(judgement: Score) -> bool | None:
    """Whether a score says correct: more than one half. None where it is missing."""
    score = judgement.score if isinstance(judgement, Verdict) else judgement
    return None if score is None or math.isnan(score) else score > 0.5


def _concerned(only_if: OnlyIf, correct: Score) -> bool | None:
    """Whether the penalty applies to a row; None when that depends on a judgement that is missing."""
    if only_if == "all":
        return True
    right = is_correct(correct)
    return None if right is None else right == (only_if == "correct")


def _check_band(low: float, high: float, power: float, only_if: str) -> None:
    if not low <= high or not 0 < power < math.inf:
        raise RewardError(f"a band needs low <= high and a positive power, got [{low}, {high}] and {power}")
    if only_if not in ("all", "correct", "wrong"):
        raise RewardError(f"unknown only_if {only_if!r}; known: all, correct, wrong")


@dataclass(frozen=True)
class LinearLength:
    """Reward a straight line between two lengths, level outside them.

    R = at_low + (at_high - at_low) * clip((L - low) / (high - low), 0, 1). Range: between `at_low` and `at_high`.
    `low == high` is a step: `at_low` up to and including it. [derived]

    >>> LinearLength(0, 10, unit="characters")("12345")
    0.5
    """

    low: float
    high: float
    at_low: float = 1.0
    at_high: float = 0.0
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        _check_band(self.low, self.high, 1.0, "all")

    def __call__(self, completion: str, completion_ids: Sequence[int] | None = None) -> float:
        """Judge one completion."""
        share = length_penalty(len(pieces(completion, completion_ids, self.unit)), self.low, self.high)
        return self.at_low + (self.at_high - self.at_low) * share


@dataclass(frozen=True)
class SoftOverlong:
    """Punish completions that come close to the limit or pass it, as DAPO does.

    R = 0 up to `limit - buffer`, then ((limit - buffer) - L) / buffer down to -1 at `limit`, and -1 beyond.
    Range: [-1, 0]. `buffer=0` is a step: 0 up to `limit`, -1 above. [paper: DAPO, arXiv 2503.14476, equation 13; code:
    TRL `get_soft_overlong_punishment`]

    >>> SoftOverlong(limit=100, buffer=20)("", [1] * 90)
    -0.5
    """

    limit: int
    buffer: int
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        if not 0 <= self.buffer <= self.limit:
            raise RewardError(f"buffer lies between 0 and limit, got {self.buffer} and {self.limit}")

    def __call__(self, completion: str, completion_ids: Sequence[int] | None = None) -> float:
        """Judge one completion."""
        length = len(pieces(completion, completion_ids, self.unit))
        return 0.0 - length_penalty(length, self.limit - self.buffer, self.limit)


@dataclass(frozen=True)
class CosineLength:
    """Reward short right answers and long wrong ones, along a cosine.

    R = a + (b - a) / 2 * (1 + cos(pi * min(L / limit, 1))), from b at length 0 to a at `limit` and beyond. Right
    answers: b = `correct[1]`, a = `correct[0]`; wrong ones: b = `wrong[0]`, a = `wrong[1]`, so that a longer wrong
    answer loses less. Range: that of `correct` and `wrong`. Missing where it is not known whether the answer is right.

    Differs: the published code of open-r1 lets the cosine rise again beyond the limit; here, as in TRL, it stays.
    `exceed` replaces the value beyond the limit, as in the original. [paper: arXiv 2502.03373, appendix C.1; code: TRL
    `get_cosine_scaled_reward`, whose defaults these are]

    >>> judge = CosineLength(limit=100)
    >>> judge(r"so 1/3", completion_ids=[1] * 50, correct=1.0), judge("1/2", completion_ids=[1] * 50, correct=0.0)
    (0.75, -0.75)
    """

    limit: int
    correct: tuple[float, float] = (0.5, 1.0)
    """Values of a right answer at `limit` and at length 0."""
    wrong: tuple[float, float] = (-1.0, -0.5)
    """Values of a wrong answer at length 0 and at `limit`."""
    exceed: float | None = None
    """Value of any answer longer than `limit`; None leaves it at the value of `limit`."""
    unit: Unit = "tokens"
    judge: Callable[[str, str], Score] = math_answer
    """Says whether an answer is right, more than one half, where the row has no field `correct`."""

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise RewardError(f"limit must be positive, got {self.limit}")

    def __call__(
        self,
        completion: str,
        answer: str | None = None,
        correct: Score = None,
        completion_ids: Sequence[int] | None = None,
    ) -> float | Verdict | None:
        """Judge one completion."""
        judgement = self.judge(completion, answer) if correct is None and answer is not None else correct
        right = is_correct(judgement)
        if right is None:
            return judgement if isinstance(judgement, Verdict) else None
        length = len(pieces(completion, completion_ids, self.unit))
        if self.exceed is not None and length > self.limit:
            return self.exceed
        far, near = self.correct if right else (self.wrong[1], self.wrong[0])
        return far + (near - far) / 2 * (1 + math.cos(math.pi * min(length / self.limit, 1.0)))


@dataclass(frozen=True)
class LengthBand:
    """Reward minus the generalised length penalty of a fixed band.

    R = -clip((L - low) / (high - low), 0, 1) ** power, see `length_penalty`; 0.0 for rows that `only_if` leaves out,
    missing where that depends on a field `correct` that is missing. Range: [-1, 0]. [derived, after HARMO, arXiv
    2510.05283, which publishes no formula]

    >>> LengthBand(100, 200)("", completion_ids=[1] * 150)
    -0.5
    """

    low: float
    high: float
    power: float = 1.0
    only_if: OnlyIf = "all"
    """Which rows are punished; `correct` is the safer choice, since punished wrong answers teach short guesses."""
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        _check_band(self.low, self.high, self.power, self.only_if)

    def __call__(
        self, completion: str, correct: Score = None, completion_ids: Sequence[int] | None = None
    ) -> float | None:
        """Judge one completion."""
        concerned = _concerned(self.only_if, correct)
        if concerned is None:
            return None
        length = len(pieces(completion, completion_ids, self.unit))
        return 0.0 - length_penalty(length, self.low, self.high, self.power) if concerned else 0.0


@reward(level="group")
@dataclass(frozen=True)
class GroupLengthBand:
    """Reward minus the generalised length penalty, with the band from the shortest to the longest of the group.

    As `LengthBand` with low = min L and high = max L over all members. Range: [-1, 0]; equal lengths, and a group of
    one, give 0.0 to all. [derived]

    >>> GroupLengthBand(unit="characters")(["ab", "abcd", "abcdef"])
    [0.0, -0.5, -1.0]
    """

    power: float = 1.0
    only_if: OnlyIf = "all"
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        _check_band(0.0, 1.0, self.power, self.only_if)

    def __call__(
        self,
        completion: Sequence[str],
        correct: Sequence[Score] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[float | None]:
        """Judge the members of one group."""
        lengths = _lengths(completion, completion_ids, self.unit)
        penalties = [0.0 - length_penalty(n, min(lengths), max(lengths), self.power) for n in lengths]
        concerned = [_concerned(self.only_if, each) for each in correct or [None] * len(completion)]
        return [None if c is None else p if c else 0.0 for p, c in zip(penalties, concerned, strict=True)]


@reward(level="group")
@dataclass(frozen=True)
class KimiLength:
    """Reward short answers within a group, as Kimi k1.5 does.

    With u = 1/2 - (L - min L) / (max L - min L) over the group: R = u for a right answer and min(0, u) for a wrong one.
    Range: [-0.5, 0.5]. Equal lengths give 0.0 to all. Missing where a member's `correct` is. [paper: arXiv
    2501.12599; code: open-r1 `len_reward`]

    >>> KimiLength(unit="characters")(["ab", "abcd", "abc"], correct=[1, 1, 0])
    [0.5, -0.5, 0.0]
    """

    unit: Unit = "tokens"

    def __call__(
        self,
        completion: Sequence[str],
        correct: Sequence[Score],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[float | None]:
        """Judge the members of one group."""
        lengths = _lengths(completion, completion_ids, self.unit)
        low, high = min(lengths), max(lengths)
        values = [0.0 if low == high else 0.5 - length_penalty(n, low, high) for n in lengths]
        right = [is_correct(each) for each in correct]
        return [None if r is None else u if r else min(0.0, u) for u, r in zip(values, right, strict=True)]
