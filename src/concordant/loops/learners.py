"""Learned parts of a run: they add columns before the chain and learn from the table after it."""

from typing import Any, Protocol

from concordant.core.seeds import Progress, Rng
from concordant.core.table import Table


class Learner(Protocol):
    """A model that is trained beside the policy (a critic, a reward model, a discriminator)."""

    def columns(self, table: Table) -> Table:
        """Return the table with the learner's columns."""
        ...

    def calibrate(self, table: Table) -> None:
        """Called once, with the first table, before any training; what it sets is frozen."""
        ...

    def trains(self, table: Table, progress: Progress) -> tuple[bool, bool]:
        """Return whether this table updates the policy, and whether it updates the learner."""
        ...

    def learn(self, table: Table, progress: Progress) -> dict[str, float]:
        """Learn from the table after the chain; return numbers to log."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as a tree of tensors and JSON values."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


class LearnerSpec(Protocol):
    """A frozen description of a learner, as an arm holds it."""

    @property
    def provides(self) -> dict[str, str]:
        """Columns the learner adds, with their axes."""
        ...

    def build(self, world: Any, policy: Any, rng: Rng) -> Learner:
        """Make the learner of one run."""
        ...
