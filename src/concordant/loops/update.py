"""One pass of optimiser steps over a table, with work that cannot matter left out."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from concordant.core.errors import ConcordantError
from concordant.core.recipe import TrainConfig
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.loops.ranks import Ranks


def backward(policy: Any, objective: Any, work: Any, micro_batch: int) -> dict[str, float]:
    """Accumulate the gradient of a mini-batch; rows without force take no pass, equal rows take one.

    The gradient equals that of one forward pass over all rows, up to floating-point summation order.
    """
    active = work.active()
    unique = work.take(active).merged()
    loss, shift = 0.0, 0.0
    for piece in unique.pieces(micro_batch):
        found = objective.loss(piece, policy)
        found.value.backward()
        loss += float(found.value.detach())
        shift = max(shift, found.shift)
    return {
        "loss": loss,
        "rows_active": float(len(active)),
        "rows_forward": float(len(unique.mask)),
        "logp_shift": shift,
    }


def mini_batches(table: Table, updates: int, rng: Rng, unit: str = "id") -> Sequence[Table]:
    """Split a table into `updates` parts of nearly equal size, in an order addressed by row id.

    With `unit="group"` the order is that of whole groups, which are never split.
    """
    if updates == 1:
        return [table]
    if unit == "id":
        order = rng.uniform(table["id"]).argsort()
        return [table.take(part) for part in order.tensor_split(updates) if len(part)]
    groups = table["group"].unique()
    chosen = groups[rng.uniform(groups).argsort()].tensor_split(updates)
    return [table.take(torch.isin(table["group"], part)) for part in chosen if len(part)]


def _rows_of(table: Table, batch: Table) -> Table:
    """The rows of a batch that the table has, in the order of the batch."""
    ids, order = table["id"].sort()
    place = torch.searchsorted(ids, batch["id"]).clamp(max=len(ids) - 1)
    return table.take(order[place[ids[place] == batch["id"]]])


def update(
    policy: Any,
    objective: Any,
    optimiser: torch.optim.Optimizer,
    table: Table,
    config: TrainConfig,
    rng: Rng,
    steps_done: int,
    ranks: Ranks | None = None,
    whole: Table | None = None,
) -> dict[str, float]:
    """Take `epochs * updates` optimiser steps on a table; return the last step's numbers.

    With several processes, `table` holds the rows of this one and `whole` those of all, over which mini-batches and
    denominators are formed; gradients are added up.

    Raises:
        ConcordantError: if a gradient is not finite; nothing is updated then.
    """
    ranks, whole = ranks or Ranks(), table if whole is None else whole
    log: dict[str, float] = {}
    unit = "group" if objective.whole_groups else "id"
    for epoch in range(config.epochs):
        for batch in mini_batches(whole, config.updates, rng.child(f"epoch{epoch}"), unit):
            optimiser.zero_grad(set_to_none=True)
            mine = batch if ranks.size == 1 else _rows_of(table, batch)
            work = objective.prepare(mine, policy.reads, among=None if ranks.size == 1 else batch)
            log = backward(policy, objective, work, config.micro_batch)
            log |= {"loss": ranks.add(log["loss"]), **_step(optimiser, config, steps_done, ranks)}
            steps_done += 1
    return log | {"updates_done": float(steps_done)}


def _step(
    optimiser: torch.optim.Optimizer, config: TrainConfig, steps_done: int, ranks: Ranks
) -> dict[str, float]:
    """Take one optimiser step with the gradients of all processes."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for parameter in parameters:
        if parameter.grad is None:  # no row had force: a gradient of zero, as a naive loss would give
            parameter.grad = torch.zeros_like(parameter)
    ranks.add_gradients(parameters)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
    if not math.isfinite(norm):
        raise ConcordantError(
            "the gradient is not finite; look at the last metrics for exploding ratios or advantages, "
            "lower train.lr, or clip (objective.term.low/high)"
        )
    rate = config.lr * min(1.0, (steps_done + 1) / max(config.warmup, 1))
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    return {"grad_norm": norm, "lr": rate}


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's per-parameter tensors as a tree."""
    return {str(index): dict(entry) for index, entry in optimiser.state_dict()["state"].items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tree: dict[str, Any]) -> None:
    """Restore what `optimiser_state` returned."""
    state = optimiser.state_dict()
    state["state"] = {int(index): entry for index, entry in tree.items() if isinstance(entry, dict)}
    optimiser.load_state_dict(state)
