"""What a sampler is asked, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from concordant.core.seeds import Rng
from concordant.core.table import Table


@dataclass(frozen=True)
class Cost:
    """What sampling cost: sampled tokens (hints included), rollouts, reward calls."""

    tokens: int = 0
    rollouts: int = 0
    reward_calls: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.tokens + other.tokens, self.rollouts + other.rollouts, self.reward_calls + other.reward_calls
        )


def cost_of(rows: Table, reward_calls: int = 0) -> Cost:
    """Cost of a sampled table."""
    return Cost(int(rows["mask"].sum()), rows.rows, reward_calls)


class Scored(NamedTuple):
    """A table with reward columns, and how many reward calls it took."""

    table: Table
    calls: int


@dataclass(frozen=True)
class Ask:
    """What the loop asks of a sampler for one step."""

    tasks: Sequence[Any]
    plan: Any
    world: Any
    draw: Callable[[int], Sequence[Any]]
    """Draws that many further tasks."""
    reference: Any = None
    begin: Callable[[Table], Callable[[], Scored]] | None = None
    """Begins to score and returns a function that waits for the scores, for samplers that sample meanwhile."""
    parts: int = 1
    """Parts in which the tasks are to be sampled, each scored while the next one is sampled."""


class Drawn(NamedTuple):
    """Scored rows, the sampler's new state (a tree of JSON values), what it cost, and numbers to log."""

    rows: Table
    state: dict[str, Any]
    cost: Cost
    log: dict[str, float]


class Sampler(Protocol):
    """`sampler(ask, policy, score, rng, state) -> Drawn`."""

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model must be kept."""
        ...

    def init(self) -> dict[str, Any]:
        """Return the starting state."""
        ...

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample and score."""
        ...
