"""What a sampler is asked, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, Protocol

from concordant.core.seeds import Rng
from concordant.core.table import Table


@dataclass(frozen=True)
class Cost:
    """What sampling cost: sampled tokens (hints included), rollouts, reward calls, network evaluations.

    An evaluation is one pass of a generator's network over one image; guidance takes two. Language models count tokens.
    """

    tokens: int = 0
    rollouts: int = 0
    reward_calls: int = 0
    evaluations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = astuple(self), astuple(other)
        return Cost(*(a + b for a, b in zip(mine, theirs, strict=True)))


def cost_of(rows: Table, reward_calls: int = 0) -> Cost:
    """Cost of a sampled table of text."""
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
    first_id: int = 0
    """Id of the first row: above 0 where other processes sample the tasks before these."""


class Drawn(NamedTuple):
    """Scored rows, the sampler's new state (a tree of JSON values), what it cost, and numbers to log."""

    rows: Table
    state: dict[str, Any]
    cost: Cost
    log: dict[str, float]


class Sampler(Protocol):
    """`sampler(ask, policy, score, rng, state) -> Drawn`.

    One that sets `shares = True` may be run by several processes, each with its part of the tasks: its rows count from
    `ask.first_id`, and its state does not depend on the tasks.
    """

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
