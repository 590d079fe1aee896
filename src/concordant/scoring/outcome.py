"""What goes into a scoring pass and what comes out, without tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rows:
    """Rollouts as plain fields: `fields[name][row]`."""

    fields: Mapping[str, Sequence[Any]]
    group: Sequence[int] = ()
    """Rows with equal numbers are compared with each other; empty: every row is a group of its own."""
    ids: Sequence[int] = ()
    """Stable identity of each row, from which `Context.seed` comes; empty: its position."""
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """For the levels `segment` and `step`: how many values a reward must return for each row."""

    def __len__(self) -> int:
        return len(next(iter(self.fields.values()), ()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one reward said about one row: a value, or the reason why there is none."""

    value: float | tuple[float, ...] | None
    """Finite numbers only; a tuple (with NaN where one element is missing) at the levels `segment`, `step`
    and `check`."""
    reason: str = ""
    """Empty if and only if there is a value."""
    confidence: float | None = None
    kind: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time of the last attempt (of the group's, for rewards of groups)."""
    attempts: int = 0
    """How often the function was called; 0 when the value came from the cache or from an equal row."""
    cached: bool = False
    sandbox: str = ""
    """Isolation of code that the reward ran: `bubblewrap`, `none` (the user insisted), or empty for no foreign code."""
