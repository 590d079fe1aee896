"""Completions: the value of every state of a trajectory, as the reward of the image that the ODE makes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels import calibrate_noise
from concordant.policies.flow import FlowPlan, Steps, numbered, pick
from concordant.samplers.base import Ask, Cost, Drawn, Scored
from concordant.samplers.denoise import Balance, Denoise, rescaled

PREVIEWS = 1 << 40
"""Ids of completions start here, above those of rows."""


@dataclass(frozen=True)
class Completions:
    """Sample as `base` does, then complete every state before its end deterministically and score the image.

    For each reward r there is a column `r_before` (b s): the reward of the image that the ODE makes of the state before
    step k (DenseGRPO). The state after the last step is the image itself, whose reward is r.
    """

    base: Denoise = field(default_factory=Denoise)
    rewards: tuple[str, ...] = ()
    """Rewards whose values are wanted."""
    steps: int = 0
    """ODE steps of a completion: 0 takes the remaining steps of the schedule, fewer are cheaper and coarser."""
    balance: Balance | None = None
    """Calibrate the noise before the first table."""

    needs_reference = False
    shares = True
    modality = "image"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps must be 0 (all that remain) or at least 1, got {self.steps}")
        if not self.rewards:
            raise ConfigError("completions need the names of the rewards whose values are wanted")

    @property
    def columns(self) -> dict[str, str]:
        """Values before each step, and the columns of the base."""
        return {**self.base.columns, **{f"{name}_before": "b s" for name in self.rewards}}

    def init(self) -> dict[str, Any]:
        """The state of the base, and the calibrated noise once there is one."""
        return {**self.base.init(), "noise": []}

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample, complete, score."""
        before, calls, rollouts, log = policy.evaluations, 0, 0, {}
        noise = list(state["noise"])
        if self.balance is not None and not noise:
            noise, calls, rollouts = self._calibrate(ask, policy, score, rng.child("balance"))
            log = {f"noise/{k}": level for k, level in enumerate(noise)}
        sampler = self._with(noise)
        rows = sampler.draw(ask, policy, rng, state["tables"])
        table, asked = self._valued(policy, rows, sampler, score)
        cost = Cost(0, rows.rows + rollouts, calls + asked, policy.evaluations - before)
        return Drawn(table, {**state, "noise": noise, "tables": state["tables"] + 1}, cost, log)

    def _with(self, noise: list[float]) -> Denoise:
        return rescaled(self.base, tuple(noise)) if noise else self.base

    def _valued(
        self, policy: Any, rows: Table, sampler: Denoise, score: Callable[[Table], Scored]
    ) -> tuple[Table, int]:
        """Score rows and their completions; return the rows with the value columns, and the calls."""
        scored = score(rows)
        previews = score(previews_of(policy, rows, sampler, self.steps))
        steps = rows["mask"].shape[1]
        values = {}
        for name in self.rewards:
            if name not in previews.table:
                raise DataError(f"no reward {name!r} among those of the arm; name one that it has")
            values[f"{name}_before"] = ("b s", previews.table[name].reshape(rows.rows, steps))
        return scored.table.with_columns(values), scored.calls + previews.calls

    def _calibrate(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng
    ) -> tuple[list[float], int, int]:
        """Balance gains and losses at every step; return the noise, the reward calls and the rollouts it took."""
        balance = self.balance
        assert balance is not None
        steps = policy.schedule.steps(self.base.plan(1, 0, rng))
        length = (steps.sigma - steps.sigma_next)[0].double()
        start = steps.std[0].double() / length.sqrt()
        cap = (2.0 * steps.sigma[0].double() / length).sqrt()
        psi, calls = start, 0
        for round_ in range(balance.rounds):
            here = rng.child(f"round{round_}")
            asked = Ask(ask.draw(balance.trajectories), FlowPlan(1), ask.world, ask.draw)
            sampler = self._with(psi.tolist())
            rows = sampler.draw(asked, policy, here, 0)
            table, spent = self._valued(policy, rows, sampler, score)
            calls += spent
            gains = torch.stack([_gains(table, name) for name in self.rewards]).sum(0)
            psi = calibrate_noise(
                psi, gains, tolerance=balance.tolerance, rate=balance.rate, floor=balance.floor, cap=cap
            )
        if balance.flat:
            psi = start * (psi.mean() / start.mean())
        return psi.tolist(), calls, balance.rounds * balance.trajectories


def _gains(table: Table, name: str) -> Tensor:
    before = table[f"{name}_before"].double()
    return torch.cat([before[:, 1:], table[name].double()[:, None]], 1) - before


def previews_of(policy: Any, rows: Table, sampler: Denoise, steps: int) -> Table:
    """The images that the ODE makes of every state of every row, one row each, ordered by row and step.

    Args:
        policy: made the rows.
        rows: table with the states before all steps, `latent` (b s d).
        sampler: what the rows were sampled with.
        steps: ODE steps of each completion; 0 takes those that remain of the schedule.
    """
    count, total = rows["sigma"].shape
    flat = policy.schedule.steps(FlowPlan(1, total, noise=0.0))
    place = torch.arange(total).repeat(count)
    of_row = torch.arange(count).repeat_interleave(total)
    states = rows["latent"].flatten(0, 1)
    prompts, whose = numbered(rows.fields["prompt"])
    condition = pick(policy.encode(prompts), whose[of_row].to(policy.device))
    with torch.no_grad():
        walk, on = _walk_of(policy, flat, place, steps)
        end = policy.integrate(states.to(policy.device), condition, walk, on=on, trace=False).states[:, -1]
    columns = {
        "id": ("b", PREVIEWS + rows["id"][of_row] * total + place),
        "task": ("b", rows["task"][of_row]),
        "group": ("b", rows["group"][of_row] * total + place),
        "keep": ("b", rows["keep"][of_row]),
    }
    fields = {
        name: [values[i] for i in of_row.tolist()] for name, values in rows.fields.items() if name != "image"
    }
    return Table.of(columns, {**fields, "image": policy.images(end.cpu())})


def _walk_of(policy: Any, flat: Steps, place: Tensor, steps: int) -> tuple[Steps, Tensor]:
    """The deterministic steps from `place` to the end, and which of them each row takes.

    With `steps` below what remains, that many steps of equal length in sigma; otherwise the schedule's own.
    """
    total = flat.std.shape[1]
    if not steps:
        return flat, torch.arange(total) >= place[:, None]
    left = total - place
    inside = torch.arange(steps)
    index = (place[:, None] + inside).clamp(max=total - 1)
    own = Steps(*(values[0][index] for values in flat))
    direct = policy.schedule.direct(flat.sigma[0][place], steps)
    short = (left <= steps)[:, None]
    walk = Steps(*(torch.where(short, a, b) for a, b in zip(own, direct, strict=True)))
    return walk, ~short | (inside < left[:, None])
