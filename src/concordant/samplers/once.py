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
    shares = True

    def init(self) -> dict[str, Any]:
        """No state."""
        return {}

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample all tasks at once, or in `ask.parts` parts that are scored while the next one is sampled.

        A row's random numbers are addressed by its id, so that parts sample what the whole would.
        """
        parts = min(ask.parts, len(ask.tasks))
        if parts == 1 or ask.begin is None:
            scored = score(policy.sample(ask.tasks, ask.plan, rng, first_id=ask.first_id))
            return Drawn(scored.table, state, cost_of(scored.table, scored.calls), {})
        waiting, first = [], ask.first_id
        for part in range(parts):
            tasks = ask.tasks[part * len(ask.tasks) // parts : (part + 1) * len(ask.tasks) // parts]
            rows = policy.sample(tasks, ask.plan, rng, first_id=first)
            first += rows.rows
            waiting.append(ask.begin(rows))
        found = [wait() for wait in waiting]
        table = Table.concat([scored.table for scored in found])
        return Drawn(table, state, cost_of(table, sum(scored.calls for scored in found)), {})
