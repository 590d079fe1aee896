"""Rewards of the digits world: each sees all images of a step at once; an image that is not finite has none (NaN).

`label` is the class that the prompt asks for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from concordant.scoring.reward import reward
from concordant.worlds.flow_digits import evaluators, judges
from concordant.worlds.flow_digits.evaluators import load, logp, spread_out, stack

CLASS_COST = 2.0
"""Distance, in units of thickness and slant, that showing surely another class than the prompted one counts for."""


def _ints(labels: Sequence[int], whole: Tensor) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)[whole]


@reward(level="batch", inline=True)
@dataclass(frozen=True)
class ClassProbability:
    """Probability of the prompted class by the reward classifier; with `log`, its logarithm."""

    weights: str
    """Hash of the network that judges; part of the name under which results are kept."""
    log: bool = False
    smooth: float = 0.0
    """Weight of the total variation that is taken off."""

    def __call__(self, image: list[Any], label: list[int]) -> list[float]:
        """Judge images (8, 8, 1) in [0, 1]."""
        images, whole = stack(image)
        value = logp("cls", images, _ints(label, whole)).double()
        value = value if self.log else value.exp()
        return spread_out(value - self.smooth * total_variation(images) if self.smooth else value, whole)


@reward(level="batch", inline=True)
@dataclass(frozen=True)
class QualityScore:
    """The pointwise reward model: quality as a drawing of the prompted class, fitted on few noisy labels."""

    weights: str
    """Hash of the network that judges; part of the name under which results are kept."""

    def __call__(self, image: list[Any], label: list[int]) -> list[float]:
        """Judge images (8, 8, 1) in [0, 1]."""
        images, whole = stack(image)
        with torch.no_grad():
            return spread_out(load("quality")(images, _ints(label, whole)), whole)


@reward(level="batch", inline=True)
@dataclass(frozen=True)
class AttributeDistance:
    """Minus the distance to the prompted class, thickness and slant, as the fixed regressor sees them:
    `-sqrt((CLASS_COST (1 - p))^2 + (thickness gap)^2 + (slant gap)^2)`, p the probability of the class.
    """

    weights: str
    """Hash of the network that judges; part of the name under which results are kept."""

    def __call__(
        self, image: list[Any], label: list[int], thickness: list[float], slant: list[float]
    ) -> list[float]:
        """Judge images (8, 8, 1) in [0, 1]."""
        images, whole = stack(image)
        with torch.no_grad():
            found = load("attributes")(images).double()
        wanted = torch.tensor([thickness, slant], dtype=torch.float64).T[whole]
        sure = found[:, :-2].softmax(1).gather(1, _ints(label, whole)[:, None])[:, 0]
        return spread_out(-distance(sure, found[:, -2:] - wanted), whole)


def distance(sure: Tensor, gap: Tensor) -> Tensor:
    """Return the distance of images to what was asked for, (n).

    Args:
        sure: probability of the prompted class, (n).
        gap: thickness and slant minus the prompted ones, (n, 2).

    >>> distance(torch.tensor([1.0, 0.5]), torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
    tensor([0.5000, 1.0000])
    """
    return (((1.0 - sure) * CLASS_COST).square() + gap.square().sum(1)).sqrt()


@reward(level="batch", inline=True)
def ink(image: list[Any]) -> list[float]:
    """Mean of the pixels, in [0, 1]."""
    images, whole = stack(image)
    return spread_out(images.double().mean((1, 2, 3)), whole)


@reward(level="batch", inline=True)
def symmetry(image: list[Any]) -> list[float]:
    """One minus the mean difference of the image and its mirror image (left and right), in [0, 1]."""
    images, whole = stack(image)
    images = images.double()
    return spread_out(1.0 - (images - images.flip(3)).abs().mean((1, 2, 3)), whole)


@reward(level="batch", inline=True)
def compressibility(image: list[Any]) -> list[float]:
    """Minus the total variation; 0 for an image of one colour."""
    images, whole = stack(image)
    return spread_out(-total_variation(images), whole)


def total_variation(images: Tensor) -> Tensor:
    """Mean difference of neighbours, down plus right, float64 (n); at most 2.

    >>> total_variation(torch.eye(2)[None, None])
    tensor([2.], dtype=torch.float64)
    """
    images = images.double()
    return images.diff(dim=2).abs().mean((1, 2, 3)) + images.diff(dim=3).abs().mean((1, 2, 3))


def make(attributes: bool) -> Mapping[str, Callable[..., Any]]:
    """Return the rewards by name; the one for attributes only where prompts have them."""
    weights = evaluators.version("cls")
    rewards: dict[str, Callable[..., Any]] = {
        "cls": ClassProbability(weights),
        "cls_logp": ClassProbability(weights, log=True),
        "smooth_cls": ClassProbability(weights, smooth=1.0),
        "ink": ink,
        "symmetry": symmetry,
        "compressibility": compressibility,
        "quality": QualityScore(evaluators.version("quality")),
        "prefer": judges.PairJudge(),
        "prefer_strict": judges.PairJudge(ties=False),
        "prefer_shuffled": judges.PairJudge("shuffled"),
    }
    if attributes:
        rewards["attributes"] = AttributeDistance(evaluators.version("attributes"))
    return rewards
