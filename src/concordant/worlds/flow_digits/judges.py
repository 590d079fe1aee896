"""Judges of pairs: `prefer(image_left, image_right, label) -> share`, for all pairs at once.

A share is 1 where the left image is the better drawing of the class `label`, 0 where the right one is, 0.5 for a tie,
and NaN where an image is not finite. All judges are fitted on one budget of noisy labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from concordant.core.errors import DataError
from concordant.scoring.reward import reward
from concordant.worlds.flow_digits.evaluators import load, spread_out, stack


class Judge(Protocol):
    """Compares images pair by pair."""

    def __call__(
        self, image_left: Sequence[Any], image_right: Sequence[Any], label: Sequence[int]
    ) -> list[float]:
        """Return the left image's share of each pair."""
        ...


@reward(level="pair", style="batch", inline=True)
@dataclass(frozen=True)
class PairJudge:
    """The Siamese network's most likely outcome; exchanging the images gives one minus the share."""

    network: str = "pairwise"
    """`pairwise`, or `shuffled`: the same fitted on comparisons whose outcomes were exchanged at random."""
    ties: bool = True
    """Whether a tie is an outcome; without, the likelier of left and right wins."""

    def __call__(
        self, image_left: Sequence[Any], image_right: Sequence[Any], label: Sequence[int]
    ) -> list[float]:
        """Judge pairs of images (8, 8, 1) in [0, 1]."""
        left, right, labels, whole = _pairs(image_left, image_right, label)
        with torch.no_grad():
            logits = load(self.network)(left, right, labels)
        share = ((logits[:, 0] - logits[:, 2]).sign() + 1.0) / 2.0
        if self.ties:
            share = torch.where(logits[:, 1] >= logits[:, ::2].amax(1), 0.5, share)
        return spread_out(share, whole)


@reward(level="pair", style="batch", inline=True)
@dataclass(frozen=True)
class ScoreJudge:
    """Compares scores of the pointwise reward model: what ranks alone do to it."""

    margin: float = 0.0
    """Scores that differ by at most this are a tie."""

    def __call__(
        self, image_left: Sequence[Any], image_right: Sequence[Any], label: Sequence[int]
    ) -> list[float]:
        """Judge pairs of images (8, 8, 1) in [0, 1]."""
        left, right, labels, whole = _pairs(image_left, image_right, label)
        with torch.no_grad():
            gap = load("quality")(left, labels) - load("quality")(right, labels)
        gap = torch.where(gap.abs() <= self.margin, 0.0, gap)
        return spread_out((gap.sign() + 1.0) / 2.0, whole)


def _pairs(
    image_left: Sequence[Any], image_right: Sequence[Any], label: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stack the pairs of finite images; the last tensor says which pairs these are."""
    if not len(image_left) == len(image_right) == len(label):
        raise DataError(
            f"a judge is given pairs: {len(image_left)} left images, {len(image_right)} right ones and {len(label)} "
            "labels do not match; give one of each for every pair"
        )
    count = len(label)
    images, whole = stack([*image_left, *image_right])
    place = whole.cumsum(0) - 1
    both = whole[:count] & whole[count:]
    labels = torch.tensor(label, dtype=torch.int64)
    return images[place[:count][both]], images[place[count:][both]], labels[both], both


def make() -> Mapping[str, Judge]:
    """Return the judges by name."""
    return {
        "pairwise": PairJudge(),
        "pairwise_strict": PairJudge(ties=False),
        "shuffled": PairJudge("shuffled"),
        "quality": ScoreJudge(),
        "quality_margin": ScoreJudge(margin=0.1),
    }
