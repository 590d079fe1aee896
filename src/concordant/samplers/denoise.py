"""Generators: every image by its own noisy trajectory, with noise at all steps or in a window that moves."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from concordant.core.errors import ConfigError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.policies.flow.schedules import FlowPlan, Kind, Last
from concordant.samplers.base import Ask, Cost, Drawn, Scored


@dataclass(frozen=True)
class Denoise:
    """Sample every task by stochastic denoising (Flow-GRPO, DanceGRPO, MixGRPO, DDPO).

    With a `window` only that many steps have noise and train, the ODE is followed elsewhere; the window starts at the
    noise end and moves by one step every `every` tables (`progressive`, back to the start after the end), or is drawn
    anew for each table (`random`).
    """

    steps: int = 10
    """Denoising steps of training; evaluations follow the ODE with steps of their own."""
    kind: Kind = "flow"
    """Form of the noise: Flow-GRPO, DanceGRPO, or coefficients-preserving; a DDIM schedule ignores it."""
    noise: float | tuple[float, ...] = 0.7
    """Noise level: a (flow, cps), g (dance; one number a step is DenseGRPO's calibrated noise), eta (DDIM)."""
    last: Last = "drop"
    """The last step: sampled with noise but not trained, trained, or without noise."""
    same_noise: bool = False
    """All images of a prompt start from the same noise."""
    fraction: float = 1.0
    """Share of the steps that train, drawn for each image."""
    window: int = 0
    """Steps with noise; 0 is all."""
    every: int = 25
    """Tables between two moves of the window."""
    order: Literal["progressive", "random"] = "progressive"
    record_mean: bool = False
    """Record the mean of every step, for ratios that read it."""

    needs_reference = False
    shares = True
    modality = "image"

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction must lie in (0, 1], got {self.fraction}")
        if not 0 <= self.window <= self.steps or self.every < 1:
            raise ConfigError(
                f"window must be 0 to steps ({self.steps}) and every at least 1, got {self.window} and {self.every}"
            )
        if self.order not in ("progressive", "random"):
            raise ConfigError(f"order must be 'progressive' or 'random', got {self.order!r}")

    @property
    def columns(self) -> dict[str, str]:
        """Columns beyond those that every generator makes."""
        return {"mean": "b s d"} if self.record_mean else {}

    def init(self) -> dict[str, Any]:
        """How many tables were sampled."""
        return {"tables": 0}

    def plan(self, group_size: int, tables: int, rng: Rng) -> FlowPlan:
        """Return the plan of a table, given how many came before."""
        window = None
        if self.window:
            places = self.steps - self.window + 1
            if self.order == "random":
                first = int(rng.child("window").uniform(torch.zeros(1, dtype=torch.long)) * places)
            else:
                first = tables // self.every % places
            window = (first, first + self.window)
        return FlowPlan(
            group_size,
            self.steps,
            self.kind,
            self.noise,
            window,
            self.last,
            self.same_noise,
            self.record_mean,
        )

    def draw(self, ask: Ask, policy: Any, rng: Rng, tables: int) -> Table:
        """Sample the rows of a table, not yet scored."""
        plan = self.plan(ask.plan.group_size, tables, rng)
        rows = policy.sample(ask.tasks, plan, rng, first_id=ask.first_id)
        return rows if self.fraction == 1 else _thin(rows, self.fraction, rng.child("steps"))

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample and score."""
        before = policy.evaluations
        rows = self.draw(ask, policy, rng, state["tables"])
        spent = policy.evaluations - before
        scored = score(rows)
        cost = Cost(rollouts=rows.rows, reward_calls=scored.calls, evaluations=spent)
        return Drawn(scored.table, {**state, "tables": state["tables"] + 1}, cost, {})


def _thin(rows: Table, fraction: float, rng: Rng) -> Table:
    """Leave a share of each row's trained steps in the mask, drawn by row id; at least one."""
    mask = rows["mask"]
    number = rng.uniform(rows["id"], mask.shape[1]).masked_fill(~mask, 2.0)
    place = number.argsort(1).argsort(1)
    wanted = torch.tensor([max(math.floor(fraction * n), 1) for n in mask.sum(1).tolist()])
    return rows.with_columns({"mask": ("b s", mask & (place < wanted[:, None]))})


@dataclass(frozen=True)
class Balance:
    """Calibration of the noise before training (DenseGRPO, algorithm 1): raise the noise of a step by `rate` while as
    many trajectories gain as lose at it, lower it otherwise. The noise stays between `floor` and the level at which the
    state would change its sign.
    """

    rounds: int = 40
    trajectories: int = 64
    tolerance: float = 2.0
    rate: float = 0.01
    floor: float = 0.05
    flat: bool = False
    """Use one level of kind `flow` with the same mean noise instead: the placebo."""


def rescaled(denoise: Denoise, noise: tuple[float, ...]) -> Denoise:
    """The same sampler with the diffusion coefficient of each step given."""
    return replace(denoise, kind="dance", noise=noise)
