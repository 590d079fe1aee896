"""Sample each prompt's group once and score it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.samplers.base import Ask, Drawn, Scored, cost_of


@dataclass(frozen=True)
class Once:
    """The default sampler."""

    needs_reference: bool = False

    def init(self) -> dict[str, Any]:
        """No state."""
        return {}

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample all tasks at once."""
        scored = score(policy.sample(ask.tasks, ask.plan, rng))
        return Drawn(scored.table, state, cost_of(scored.table, scored.calls), {})
