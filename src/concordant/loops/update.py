"""One pass of optimiser steps over a table, with work that cannot matter left out."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from concordant.core.errors import ConcordantError
from concordant.core.recipe import TrainConfig
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.objectives.policy_gradient import PolicyGradient, Work, micro_batches


def backward(policy: Any, objective: PolicyGradient, work: Work, micro_batch: int) -> dict[str, float]:
    """Accumulate the gradient of a mini-batch; rows without force take no pass, equal rows take one.

    The gradient equals that of one forward pass over all rows, up to floating-point summation order.
    """
    active = work.active()
    unique = work.take(active).merged()
    lengths = unique.table["prompt_mask"].sum(1) + unique.mask.sum(1)
    loss, shift = 0.0, 0.0
    for piece in micro_batches(lengths, micro_batch):
        rows = unique.take(piece)
        logp = policy.logp(rows.table)
        value = objective.loss(rows, logp)
        value.backward()
        loss += float(value.detach())
        change = (logp.detach().cpu() - rows.old_logp)[rows.mask]
        shift = max(shift, float(change.abs().max()) if change.numel() else 0.0)
    return {
        "loss": loss,
        "rows_active": float(len(active)),
        "rows_forward": float(len(lengths)),
        "logp_shift": shift,
    }


def mini_batches(table: Table, updates: int, rng: Rng) -> Sequence[Table]:
    """Split a table into `updates` parts of nearly equal size, in an order addressed by row id."""
    if updates == 1:
        return [table]
    order = rng.uniform(table["id"]).argsort()
    return [table.take(part) for part in order.tensor_split(updates) if len(part)]


def update(
    policy: Any,
    objective: PolicyGradient,
    optimiser: torch.optim.Optimizer,
    table: Table,
    config: TrainConfig,
    rng: Rng,
    steps_done: int,
) -> dict[str, float]:
    """Take `epochs * updates` optimiser steps on a table; return the last step's numbers.

    Raises:
        ConcordantError: if a gradient is not finite; nothing is updated then.
    """
    log: dict[str, float] = {}
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for epoch in range(config.epochs):
        for batch in mini_batches(table, config.updates, rng.child(f"epoch{epoch}")):
            optimiser.zero_grad(set_to_none=True)
            log = backward(policy, objective, objective.prepare(batch), config.micro_batch)
            for (
                parameter
            ) in parameters:  # no row had force: a step with gradient zero, as a naive loss would give
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
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
            steps_done += 1
            log |= {"grad_norm": norm, "lr": rate, "updates_done": float(steps_done)}
    return log


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's per-parameter tensors as a tree."""
    return {str(index): dict(entry) for index, entry in optimiser.state_dict()["state"].items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tree: dict[str, Any]) -> None:
    """Restore what `optimiser_state` returned."""
    state = optimiser.state_dict()
    state["state"] = {int(index): entry for index, entry in tree.items() if isinstance(entry, dict)}
    optimiser.load_state_dict(state)
