"""Frozen networks that judge digits: the reward classifier, the gold evaluators, and the rest that is fitted on few
labels.

`cls` is fitted on half a of the data. `gold` has another architecture, is fitted on half b with shifted, turned and
noisy variants, and no arm is trained on what it says.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from concordant.core.errors import DataError
from concordant.policies.networks import load_weights, read_facts
from concordant.worlds.flow_digits.data import CLASSES, SHAPE, SIDE

BASE = Path(__file__).parent / "base"
FEATURES = 32
"""Size of the gold features."""
ROWS = 4096
"""Images judged at a time."""


class Classifier(nn.Module):
    """The reward's classifier: a small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.out = nn.Linear(16 * (SIDE // 2) ** 2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 10) of images (n, 1, 8, 8)."""
        h = functional.relu(self.second(functional.relu(self.first(images))))
        return self.out(h.flatten(1))


class Gold(nn.Module):
    """The gold evaluator: wider, deeper, with pooled evidence; its last hidden layer is the feature of set metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.GELU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, FEATURES), nn.GELU(),
        )  # fmt: skip
        self.out = nn.Linear(FEATURES, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Return features (n, 32)."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, 10)."""
        return self.out(self.body(images))


class Attributes(nn.Module):
    """Regressor of a prompt's attributes: logits of the class, then thickness and slant."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, CLASSES + 2),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, 12)."""
        return self.body(images)


class Trunk(nn.Module):
    """Evidence of an image given the class it should show: a small convolutional network whose features the class
    weighs. Both quality models have this form.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, width), nn.ReLU(),
        )  # fmt: skip
        self.weigh = nn.Embedding(CLASSES, width)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return (n, width)."""
        return self.body(images) * self.weigh(labels)


class Quality(nn.Module):
    """Pointwise reward model: one number for an image and the class it should show."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.out = nn.Linear(64, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return (n)."""
        return self.out(self.trunk(images, labels))[:, 0]


class Pairwise(nn.Module):
    """Siamese judge of two images: left, tie or right; exchanging the images exchanges left and right exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.better = nn.Linear(64, 1, bias=False)
        self.tie = nn.Linear(64, 1)

    def forward(self, left: Tensor, right: Tensor, labels: Tensor) -> Tensor:
        """Return logits (n, 3): left is better, tie, right is better."""
        ahead, behind = self.trunk(left, labels), self.trunk(right, labels)
        gain = self.better(ahead - behind)
        return torch.cat([gain, self.tie((ahead - behind).abs()), -gain], 1)


MODELS: dict[str, type[nn.Module]] = {
    "cls": Classifier,
    "gold": Gold,
    "attributes": Attributes,
    "quality": Quality,
    "pairwise": Pairwise,
    "shuffled": Pairwise,
}
"""Evaluators by the name of their file."""


@cache
def load(name: str) -> Any:
    """Load an evaluator that ships with the world, frozen, once a process."""
    return load_weights(MODELS[name](), BASE, name).requires_grad_(False)


@cache
def version(name: str) -> str:
    """Return the hash of an evaluator's weights, which names the results of rewards that use it."""
    return str(read_facts(BASE, name)["sha256"])


def stack(images: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Stack images and find those that can be judged.

    Args:
        images: arrays (8, 8, 1) in [0, 1].

    Returns:
        The images that are finite everywhere, float32 (m, 1, 8, 8), and bool (n): which ones these are.
    """
    for image in images:
        if np.shape(image) != SHAPE:
            raise DataError(
                f"an image of this world has shape {SHAPE} (height, width, channel), got {np.shape(image)}"
            )
    found = np.asarray(images, dtype=np.float32).reshape(-1, 1, SIDE, SIDE)
    whole = np.isfinite(found).all((1, 2, 3))
    return torch.from_numpy(found[whole]), torch.from_numpy(whole)


def spread_out(values: Tensor, whole: Tensor) -> list[float]:
    """Return a list with the values of the images that could be judged, NaN for the others."""
    result = torch.full((len(whole),), torch.nan, dtype=torch.float64)
    result[whole] = values.double()
    found: list[float] = result.tolist()
    return found


@torch.no_grad()
def logp(name: str, images: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability that classifier `cls` or `gold` gives the label, (n)."""
    return log_probabilities(name, images).gather(1, labels[:, None])[:, 0]


@torch.no_grad()
def log_probabilities(name: str, images: Tensor) -> Tensor:
    """Return log-probabilities of all classes, (n, 10), by classifier `cls` or `gold`."""
    return torch.cat([load(name)(part).log_softmax(1) for part in _parts(images)])


@torch.no_grad()
def gold_features(images: Tensor) -> Tensor:
    """Return gold features, (n, 32)."""
    return torch.cat([load("gold").features(part) for part in _parts(images)])


def _parts(images: Tensor) -> tuple[Tensor, ...]:
    return images.split(ROWS)
