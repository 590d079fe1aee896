"""From a plan to the coefficients of every step: a step is one Gaussian, `mean = coef_x * x + coef_v * out`.

Flows and DDIM differ in nothing else, so that one policy serves both.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.kernels.flow import ddim_coefficients, flow_coefficients

Kind = Literal["flow", "dance", "cps"]
Last = Literal["drop", "train", "ode"]


@dataclass(frozen=True)
class FlowPlan:
    """How many images a task gets, and how they are drawn."""

    group_size: int = 8
    """Rows a task."""
    steps: int = 10
    """Denoising steps."""
    kind: Kind = "flow"
    """Form of the noise; DDIM schedules ignore it."""
    noise: float | tuple[float, ...] = 0.7
    """Noise level of each step: a (flow, cps), g (dance), eta (DDIM). One number serves all steps; 0 is the ODE."""
    window: tuple[int, int] | None = None
    """Stochastic steps, from and up to (exclusive); outside them the ODE is followed. None: all steps."""
    last: Last = "drop"
    """The step that ends at sigma 0: sampled with noise but not trained, trained as the others, or without noise."""
    same_noise: bool = False
    """Rows of a group start from the same noise."""
    record_mean: bool = False
    """Keep the mean of every step, for ratios that read `old_mean`."""

    def __post_init__(self) -> None:
        for name in ("group_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        levels = self.noise if isinstance(self.noise, tuple) else (self.noise,)
        if isinstance(self.noise, tuple) and len(levels) != self.steps:
            raise ConfigError(
                f"noise has {len(levels)} levels for {self.steps} steps; give one number or one a step"
            )
        if not all(0 <= level < float("inf") for level in levels):
            raise ConfigError(f"noise must be finite and not negative, got {self.noise}")
        if self.window is not None and not 0 <= self.window[0] < self.window[1] <= self.steps:
            raise ConfigError(
                f"window {self.window} must lie inside the {self.steps} steps: 0 <= from < up to <= {self.steps}"
            )

    @property
    def levels(self) -> Tensor:
        """Noise level of every step, 0 outside the window, float64, shape (s)."""
        given = self.noise if isinstance(self.noise, tuple) else (self.noise,) * self.steps
        levels = torch.tensor(given, dtype=torch.float64)
        if self.window is not None:
            place = torch.arange(self.steps)
            levels = levels * ((place >= self.window[0]) & (place < self.window[1]))
        if self.last == "ode":
            levels[-1] = 0.0
        return levels


class Steps(NamedTuple):
    """Coefficients of the steps of some rows, each float32 of shape (r, s); r is 1 where all rows share them."""

    sigma: Tensor
    """Time before the step, as the network is given it."""
    sigma_next: Tensor
    """Time after it."""
    coef_x: Tensor
    coef_v: Tensor
    std: Tensor
    """Standard deviation of the step; 0 where it is deterministic."""


def step_mean(x: Tensor, out: Tensor, coef_x: Tensor, coef_v: Tensor) -> Tensor:
    """Mean of steps: `coef_x * x + coef_v * out`, states and outputs (... d), coefficients (...)."""
    return coef_x[..., None] * x + coef_v[..., None] * out


class Schedule(Protocol):
    """Makes coefficients from plans."""

    @property
    def settings(self) -> dict[str, float]:
        """What must be equal when rows are sampled and when they are scored again."""
        ...

    def steps(self, plan: FlowPlan) -> Steps:
        """Return the steps of a plan, each of shape (1, s)."""
        ...

    def noised(self, x0: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the state of clean latents (n, d) at times in [0, 1), what the network should say, and its time."""
        ...

    def direct(self, sigma: Tensor, steps: int) -> Steps:
        """Return at most `steps` deterministic steps from each time to the clean end, shape (r, steps)."""
        ...


def flow_sigmas(steps: int, shift: float = 1.0) -> Tensor:
    """Noise levels of a flow from 1 to 0: `s' = k s / (1 + (k-1) s)` of equal steps.

    Args:
        steps: number of steps T.
        shift: k; above 1 spends more steps at high noise.

    Returns:
        float64, shape (T+1).

    >>> flow_sigmas(4, 3.0)
    tensor([1.0000, 0.9000, 0.7500, 0.5000, 0.0000], dtype=torch.float64)
    """
    if not shift > 0:
        raise ConfigError(f"shift must be above 0, got {shift}")
    base = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    return shift * base / (1.0 + (shift - 1.0) * base)


def _float(values: Tensor) -> Tensor:
    return values.to(torch.float32).reshape(-1, values.shape[-1])


def flow_steps(sigmas: Tensor, plan: FlowPlan) -> Steps:
    """Steps of a plan at given noise levels (s+1); kind `flow` takes the second level where sigma is 1."""
    here, after = sigmas[:-1], sigmas[1:]
    guard = float(sigmas[1]) if plan.steps > 1 else 0.5
    made = flow_coefficients(here, after, plan.levels, kind=plan.kind, guard=guard)
    return Steps(*map(_float, (here, after, *made)))


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow: sigma runs from 1 to 0 in equal steps that `shift` moves towards the noise."""

    shift: float = 1.0

    @property
    def settings(self) -> dict[str, float]:
        """The shift."""
        return {"shift": self.shift}

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels, float64, shape (steps+1)."""
        return flow_sigmas(steps, self.shift)

    def steps(self, plan: FlowPlan) -> Steps:
        """Return the steps of a plan; the noise of kind `flow` uses the second level where sigma is 1."""
        return flow_steps(self.sigmas(plan.steps), plan)

    def noised(self, x0: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State `(1-s) x0 + s e`, its velocity `e - x0`, and s."""
        s = time[:, None].to(x0)
        return (1.0 - s) * x0 + s * noise, noise - x0, time

    def direct(self, sigma: Tensor, steps: int) -> Steps:
        """Euler steps of equal length from each sigma to 0; a row that starts at 0 stays there."""
        parts = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        sigmas = sigma.double()[:, None] * parts
        here, after = sigmas[:, :-1], sigmas[:, 1:]
        return Steps(*map(_float, (here, after, torch.ones_like(here), after - here, torch.zeros_like(here))))


@dataclass(frozen=True)
class DDIMSchedule:
    """DDPM-type model with epsilon prediction: times are evenly spaced, the last step ends at the clean image.

    `alpha_bar` holds the model's cumulative signal levels, one for each of its training timesteps.
    """

    alpha_bar: tuple[float, ...] = field(repr=False)

    @property
    def settings(self) -> dict[str, float]:
        """The number of training timesteps."""
        return {"train_timesteps": float(len(self.alpha_bar))}

    def steps(self, plan: FlowPlan) -> Steps:
        """Return the steps of a plan; the noise level is eta."""
        count, total = plan.steps, len(self.alpha_bar)
        if count > total:
            raise ConfigError(f"{count} steps are more than the {total} timesteps of the model")
        place = (torch.arange(count, 0, -1, dtype=torch.float64) * total / count).round().long() - 1
        levels = torch.tensor(self.alpha_bar, dtype=torch.float64)
        here, after = levels[place], torch.cat([levels[place[1:]], levels.new_ones(1)])
        made = ddim_coefficients(here, after, plan.levels)
        time = place.double() / total
        return Steps(*map(_float, (time, torch.cat([time[1:], time.new_zeros(1)]), *made)))

    def noised(self, x0: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State `sqrt(ab) x0 + sqrt(1-ab) e` at the timestep below a time, the noise e, and the network's time."""
        total = len(self.alpha_bar)
        place = (time * total).long().clamp(max=total - 1)
        level = torch.tensor(self.alpha_bar, dtype=x0.dtype, device=x0.device)[place][:, None]
        return level.sqrt() * x0 + (1.0 - level).sqrt() * noise, noise, place.to(x0.dtype) / total

    def direct(self, sigma: Tensor, steps: int) -> Steps:
        """Refused: completions of DDIM trajectories follow the schedule of the plan."""
        raise ConfigError(
            "a DDIM schedule has no direct steps; complete with the remaining steps of the plan"
        )
