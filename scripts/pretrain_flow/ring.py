"""Fit the base of the ring."""

from pathlib import Path
from typing import Any

import torch
from generators import descend, draw, noisy, velocity_loss
from torch import Tensor

from concordant.policies.networks import MLPConfig, ResidualMLP, load_network, save_network
from concordant.worlds.flow_ring2d import velocity
from concordant.worlds.flow_ring2d.velocity import COMPONENTS, RingReader, RingVelocity

STEPS, BATCH, LR = 4000, 512, 2e-3


def make(folder: Path, seed: int) -> tuple[Any, dict[str, float]]:
    """Fit, save, measure the weights as they are shipped."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = MLPConfig(velocity.SHAPE, COMPONENTS, width=128, blocks=1, bound=velocity.BOUND)
    network = ResidualMLP(config, RingReader())
    everything, means = torch.eye(COMPONENTS), velocity.centres().float()

    def loss() -> Tensor:
        component = torch.randint(COMPONENTS, (BATCH,), generator=generator)
        x0 = means[component] + velocity.SPREAD * torch.randn(BATCH, 2, generator=generator)
        return velocity_loss(network, x0, noisy(everything[component], everything, generator), generator)

    kept = descend(network, loss, STEPS, LR, "ring")
    save_network(kept, folder, "mlp")
    facts = measure(load_network(folder, "mlp", RingReader()), seed + 1)
    save_network(kept, folder, "mlp", facts=facts)
    return kept, facts


@torch.no_grad()
def measure(network: Any, seed: int, count: int = 4000) -> dict[str, float]:
    """Share of points at the prompted component and at any, and the error of the unprompted velocity."""
    wanted = torch.arange(count) % COMPONENTS
    x = draw(network, torch.eye(COMPONENTS)[wanted], seed)
    away = torch.cdist(x.double(), velocity.centres())
    generator = torch.Generator().manual_seed(seed)
    noise, sigma = torch.randn(count, 2, generator=generator), torch.rand(count, generator=generator)
    x0 = velocity.centres()[wanted].float() + velocity.SPREAD * torch.randn(count, 2, generator=generator)
    state, blank = torch.lerp(x0, noise, sigma[:, None]), torch.zeros(count, COMPONENTS)
    error = (network(state, sigma, blank) - RingVelocity()(state, sigma, blank)).square().mean()
    numbers = {
        "accuracy": (away.argmin(1) == wanted).float().mean(),
        "on_ring": (away.amin(1) <= 3 * velocity.SPREAD).float().mean(),
        "velocity_error": error,
    }
    return {name: round(float(value), 4) for name, value in numbers.items()}
