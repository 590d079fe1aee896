"""Fit the generators of digits: two velocity networks and one that predicts noise."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from concordant.policies.networks import (
    DiT,
    DiTConfig,
    ImageNetwork,
    MLPConfig,
    ResidualMLP,
    alpha_bars,
)
from concordant.worlds.flow_digits import data
from concordant.worlds.flow_digits.prompts import ClassReader, CodeReader, class_codes

LABEL_NOISE = 0.3
"""Share of images whose prompt is that of another random image: leaves the base natural head-room."""
NULL = 0.1
"""Share of images without a prompt, for classifier-free guidance."""
BETAS: dict[str, Any] = {"first": 1e-4, "last": 0.02, "timesteps": 1000}
"""Noise of the DDPM paper: levels of neighbouring steps stay close even with 20 of them."""

DECAY = 0.998
"""Of the moving average of weights that is kept."""


@dataclass(frozen=True)
class Fit:
    """How one generator is fitted."""

    make: Callable[[], ImageNetwork]
    steps: int
    batch: int
    lr: float
    seed: int
    epsilon: bool = False
    """Predict the noise of a diffusion with `BETAS` (else the velocity of a flow)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For `config.json`."""


FITS = {
    "mlp": Fit(lambda: ResidualMLP(MLPConfig(), ClassReader()), 4000, 256, 2e-3, seed=0),
    "dit": Fit(lambda: DiT(DiTConfig(), ClassReader()), 2000, 128, 2.5e-3, seed=1),
    "ddim": Fit(
        lambda: ResidualMLP(MLPConfig(code=CodeReader().size), CodeReader()),
        4000, 256, 2e-3, seed=2, epsilon=True, facts={"betas": BETAS},
    ),
}  # fmt: skip


def class_data() -> tuple[Tensor, Tensor]:
    """Return latents (n, 64) of all digits and codes of their classes (n, 10)."""
    found = data.digits()
    return latents(found.images), class_codes(torch.from_numpy(found.labels))


def code_data(seed: int, copies: int = 20) -> tuple[Tensor, Tensor]:
    """Return latents (n, 64) of varied digits and codes of class and measured attributes (n, 12)."""
    found, rng = data.digits(), np.random.default_rng(seed)
    images = np.concatenate([data.varied(found.images, rng) for _ in range(copies)])
    labels = class_codes(torch.from_numpy(found.labels)).repeat(copies, 1)
    wanted = torch.from_numpy(data.attributes(images)).float()
    return latents(images), torch.cat([labels, wanted], 1)


def latents(images: data.Array) -> Tensor:
    return torch.from_numpy(images).reshape(len(images), -1) * 2.0 - 1.0


def noisy(codes: Tensor, everything: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a share of prompts by another image's, and a share by none."""
    chance = torch.rand(len(codes), 1, generator=generator)
    other = everything[torch.randint(len(everything), (len(codes),), generator=generator)]
    blank = torch.rand(len(codes), 1, generator=generator) < NULL
    return torch.where(chance < LABEL_NOISE, other, codes).masked_fill(blank, 0.0)


def fit(name: str) -> tuple[ImageNetwork, float]:
    """Fit a generator of digits; return it and the seconds it took."""
    plan, began = FITS[name], time.perf_counter()
    torch.manual_seed(plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    x0, codes = code_data(plan.seed) if plan.epsilon else class_data()
    levels = torch.tensor(alpha_bars(**BETAS))
    network = plan.make()

    def loss() -> Tensor:
        rows = torch.randint(len(x0), (plan.batch,), generator=generator)
        given = noisy(codes[rows], codes, generator)
        if plan.epsilon:
            return noise_loss(network, x0[rows], given, levels, generator)
        return velocity_loss(network, x0[rows], given, generator)

    return descend(network, loss, plan.steps, plan.lr, name), time.perf_counter() - began


def descend(network: Any, loss: Callable[[], Tensor], steps: int, lr: float, title: str) -> Any:
    """Minimise by Adam with a one-cycle schedule; return the moving average of the network."""
    kept = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps, pct_start=0.05)
    for step in track(range(steps), description=title):
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        _average(kept, network, min(DECAY, step / (step + 10)))
    return kept.eval()


def velocity_loss(network: Any, x0: Tensor, codes: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of the velocity at a uniform sigma."""
    noise = torch.randn(x0.shape, generator=generator)
    sigma = torch.rand(len(x0), generator=generator)
    return (network(torch.lerp(x0, noise, sigma[:, None]), sigma, codes) - (noise - x0)).square().mean()


def noise_loss(network: Any, x0: Tensor, codes: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of the noise at a uniform timestep; the network is given timestep / timesteps."""
    noise = torch.randn(x0.shape, generator=generator)
    place = torch.randint(len(levels), (len(x0),), generator=generator)
    level = levels[place][:, None].float()
    x = level.sqrt() * x0 + (1 - level).sqrt() * noise
    return (network(x, place / len(levels), codes) - noise).square().mean()


@torch.no_grad()
def _average(kept: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(kept.parameters()), list(network.parameters()), 1 - decay)


@torch.no_grad()
def draw(network: ImageNetwork, codes: Tensor, seed: int, steps: int = 40) -> Tensor:
    """Draw latents by the ODE of a flow, or by DDIM with eta 0, with equal steps."""
    x = torch.randn(len(codes), network.size, generator=torch.Generator().manual_seed(seed))
    if not network.alpha_bar:
        for step in range(steps):
            x = x - network(x, torch.full((len(x),), 1 - step / steps), codes) / steps
        return x
    levels = torch.tensor(network.alpha_bar)
    places = (torch.arange(steps, 0, -1) * len(levels) / steps).round().long() - 1
    after = torch.cat([levels[places[1:]], torch.ones(1)])
    for place, here, there in zip(places, levels[places], after, strict=True):
        noise = network(x, torch.full((len(x),), place / len(levels)), codes)
        x = there.sqrt() * (x - (1 - here).sqrt() * noise) / here.sqrt() + (1 - there).sqrt() * noise
    return x
