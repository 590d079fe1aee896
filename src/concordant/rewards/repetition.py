"""Repetition: how much of a text is n-grams that it has already used."""

from collections.abc import Sequence
from dataclasses import dataclass

from concordant.core.errors import RewardError
from concordant.rewards.lengths import Unit, pieces


@dataclass(frozen=True)
class NgramRepetition:
    """Punish repeated n-grams.

    R = worst * (1 - distinct n-grams / n-grams). Range: [worst, 0]; fewer than `n` units give 0.0. Case does not count
    in words and characters. [paper: arXiv 2502.03373, appendix C.2; code: TRL `get_repetition_penalty_reward` on
    tokens, open-r1 on lower-case words]

    >>> NgramRepetition(n=2)("", [5, 5, 5, 5, 5]), NgramRepetition(n=2, unit="words")("a b c d")
    (-0.75, 0.0)
    """

    n: int = 3
    worst: float = -1.0
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        if self.n < 1 or self.worst > 0:
            raise RewardError(f"n must be at least 1 and worst at most 0, got {self.n} and {self.worst}")

    def __call__(self, completion: str, completion_ids: Sequence[int] | None = None) -> float:
        """Judge one completion."""
        units = pieces(completion.casefold(), completion_ids, self.unit)
        total = len(units) - self.n + 1
        if total < 1:
            return 0.0
        distinct = len(set(zip(*(units[start:] for start in range(self.n)), strict=False)))
        return self.worst * (1 - distinct / total) + 0.0  # + 0.0: no negative zero
