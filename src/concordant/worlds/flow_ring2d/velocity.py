"""Eight Gaussians on a ring, and the velocity of their flow in closed form."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from concordant.core.errors import DataError
from concordant.policies.networks import ImageNetwork

COMPONENTS = 8
RADIUS = 1.0
SPREAD = 0.1
"""Standard deviation of each component, in each direction."""
BOUND = 2.0
"""Points from -2 to 2 are shown as images of 1 x 2 pixels in [0, 1]; points outside are moved to the border."""
SHAPE = (1, 2, 1)
ANYWHERE = "a point of the ring"
_COMPONENT = re.compile(r"a point of component (\d)")


def centres() -> Tensor:
    """Return the centres of the components, float64 (8, 2); component 0 is on the right, then counter-clockwise."""
    angle = torch.arange(COMPONENTS, dtype=torch.float64) * (2 * math.pi / COMPONENTS)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def exact_velocity(
    x: Tensor, sigma: Tensor, means: Tensor, std: float, weights: Tensor | None = None
) -> Tensor:
    """Velocity of the flow to a mixture of Gaussians, `v = E[e | x] - E[x0 | x]` for `x = (1-s) x0 + s e`.

    Formula: with `V = (1-s)^2 std^2 + s^2`, `d_k = x - (1-s) m_k` and the posterior
    `r_k ~ w_k exp(-|d_k|^2 / 2V)`, `v = sum_k r_k [ (s - (1-s) std^2) / V d_k - m_k ]`.

    Args:
        x: states, (n, d).
        sigma: noise of each state, (n), in [0, 1].
        means: m_k, (k, d).
        std: standard deviation of every component in every direction, above 0.
        weights: w_k for each state, not negative and not all 0, (n, k); None is equal weights.

    Returns:
        (n, d), computed in float64, in the dtype of x.

    Degenerate cases: at sigma 1 the posterior is the prior and `v = x - E[x0]`; at sigma 0 `v = -x`.

    Source: [derived] Gaussian conditioning.

    >>> exact_velocity(torch.tensor([[2.0]]), torch.tensor([0.5]), torch.tensor([[0.0]]), 2.0)
    tensor([[-2.4000]])
    """
    wide, s, m = x.double(), sigma.double()[:, None, None], means.to(x.device, torch.float64)
    away = wide[:, None] - (1 - s) * m
    variance = (1 - s).square() * std**2 + s.square()
    logits = -away.square().sum(2) / (2 * variance[:, :, 0])
    if weights is not None:
        logits = logits + weights.double().log()
    each = (s - (1 - s) * std**2) / variance * away - m
    return (logits.softmax(1)[:, :, None] * each).sum(1).to(x.dtype)


def prompt_of(component: int) -> str:
    """Return the prompt of a component.

    >>> prompt_of(3)
    'a point of component 3'
    """
    return f"a point of component {component}"


@dataclass(frozen=True)
class RingReader:
    """Reads prompts: a code has one place for each component; all zeros is the whole ring."""

    @property
    def size(self) -> int:
        """Length of a code."""
        return COMPONENTS

    def encode(self, prompts: Sequence[Any]) -> Tensor:
        """Return codes, float32 (u, 8)."""
        codes = torch.zeros(len(prompts), COMPONENTS)
        for row, prompt in enumerate(prompts):
            if prompt == ANYWHERE:
                continue
            match = _COMPONENT.fullmatch(prompt) if isinstance(prompt, str) else None
            if match is None or int(match[1]) >= COMPONENTS:
                raise DataError(
                    f"prompt {prompt!r} is not known to this network; it reads {prompt_of(0)!r} to "
                    f"{prompt_of(COMPONENTS - 1)!r}, and {ANYWHERE!r}"
                )
            codes[row, int(match[1])] = 1.0
        return codes


class RingVelocity(ImageNetwork):
    """The exact velocity of the ring as a network; nothing in it can be trained."""

    def __init__(self) -> None:
        super().__init__(SHAPE, COMPONENTS, RingReader(), BOUND)
        self.means = nn.Parameter(centres(), requires_grad=False)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the velocity, (n, 2)."""
        self._check(x)
        everywhere = condition.sum(1, keepdim=True) == 0
        return exact_velocity(x, time, self.means, SPREAD, condition.masked_fill(everywhere, 1.0))


def points(images: Tensor) -> Tensor:
    """Return the points (n, 2) that images (n, 1, 2, 1) show."""
    return (images.reshape(-1, 2) * 2.0 - 1.0) * BOUND
