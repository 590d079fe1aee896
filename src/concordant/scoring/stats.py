"""What a scoring pass cost and what it lacks, for one reward."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from concordant.scoring.outcome import Outcome


@dataclass(frozen=True)
class Stats:
    """Numbers of one reward in one pass."""

    rows: int = 0
    """Scores that were asked for: rows, and for rewards of pairs questions (two a pair where both orders are asked)."""
    calls: int = 0
    """Units of work (rows, groups, batches) for which the function was called."""
    attempts: int = 0
    """Calls, with those that were made again after transient errors."""
    cached: int = 0
    """Rows whose outcome came from the cache."""
    repeated: int = 0
    """Rows that share the call of an equal one."""
    seconds: float = 0.0
    """Wall time of the calls, added up over workers."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Rows without a value, by reason."""

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.rows + other.rows, self.calls + other.calls, self.attempts + other.attempts,
            self.cached + other.cached, self.repeated + other.repeated, self.seconds + other.seconds,
            Counter(self.missing) + Counter(other.missing),
        )  # fmt: skip


def count(outcomes: Sequence[Outcome], called: Sequence[Sequence[Outcome]]) -> Stats:
    """Count a pass.

    Args:
        outcomes: one for each row (or question about a pair).
        called: what each call gave, one for each row that it judged.
    """
    cached = sum(o.cached for o in outcomes)
    judged = sum(len(one) for one in called)
    return Stats(
        rows=len(outcomes),
        calls=len(called),
        attempts=sum(one[0].attempts for one in called),
        cached=cached,
        repeated=len(outcomes) - cached - judged,
        seconds=sum(one[0].seconds for one in called),
        missing=Counter(o.reason for o in outcomes if o.value is None),
    )
