"""Dynamic sampling of DAPO: drop tied groups and draw further prompts until enough informative groups are there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels import tied_groups
from concordant.samplers.base import Ask, Cost, Drawn, Scored, cost_of


@dataclass(frozen=True)
class Refill:
    """Keep groups whose `metric` differs between members; draw again until `len(ask.tasks)` groups survive.

    DAPO raises after too many rounds [code: verl]; here tied groups fill the table up instead. They train nothing,
    and the shortfall is logged as `refill_short`: an aborted run would lose the user's work.
    """

    metric: str
    rounds: int = 4
    needs_reference: bool = False

    def init(self) -> dict[str, Any]:
        """No state."""
        return {}

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample rounds until enough groups are informative."""
        wanted = len(ask.tasks) * ask.plan.group_size
        kept: list[Table] = []
        spare: list[Table] = []
        cost, tasks, first = Cost(), list(ask.tasks), 0
        for round_ in range(self.rounds):
            rows = policy.sample(tasks, ask.plan, rng.child(f"round{round_}"), first_id=first)
            scored = score(rows)
            cost = cost + cost_of(rows, scored.calls)
            tied = tied_groups(scored.table[self.metric], scored.table["group"])
            kept.append(scored.table.take(~tied))
            spare.append(scored.table.take(tied))
            first += rows.rows
            if sum(part.rows for part in kept) >= wanted:
                break
            tasks = list(ask.draw(len(ask.tasks)))
        informative = sum(part.rows for part in kept)
        table = Table.concat([*kept, *spare])
        table = table.take(table["id"].new_ones(table.rows).cumsum(0) <= wanted)
        log = {
            "refill_rounds": float(round_ + 1),
            "refill_short": float(max(wanted - informative, 0) // ask.plan.group_size),
        }
        return Drawn(table, state, cost, log)
