"""Metrics of whole sets of images, on gold features against real digits: MMD, Frechet distance, precision, recall,
density, diversity.

The reference is half a: the gold evaluator was fitted on the other half, so that both sets are new to it. Where prompts
have attributes it is varied digits of that half, which is what the base was fitted on.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from concordant.worlds.flow_digits import data
from concordant.worlds.flow_digits.evaluators import gold_features, stack

NEIGHBOURS = 5
"""Neighbours that the radius of a ball reaches to."""
Rows = NDArray[np.float64]


class Reference(NamedTuple):
    """Real digits and what is computed of them once."""

    features: Rows
    """Gold features, (n, 32)."""
    gamma: float
    """Of the kernel `exp(-gamma |x - y|^2)`: one over the median squared distance."""
    kernel: float
    """Mean kernel of two different real images."""
    mean: Rows
    root: Rows
    """Square root of the covariance."""
    radius: Rows
    """Distance of each image to its fifth neighbour, (n)."""
    diversity: Rows
    """Mean distance of two images of each class, (10)."""


def features_of(images: data.Array) -> Rows:
    """Return gold features of images (n, 8, 8, 1)."""
    found: Rows = gold_features(stack(list(images))[0]).double().numpy()
    return found


@cache
def reference(varied: bool = False) -> Reference:
    """Return half a as a reference: the digits as they are, or one variant of each."""
    digits = data.half("a")
    images = data.varied(digits.images, np.random.default_rng(0)) if varied else digits.images
    features = features_of(images)
    gamma = 1.0 / float(np.median(pdist(features, "sqeuclidean")))
    root = np.real(linalg.sqrtm(np.cov(features.T)))
    spread = np.array([pdist(features[digits.labels == label]).mean() for label in range(data.CLASSES)])
    kernel = _off_diagonal(rbf_kernel(features, gamma=gamma))
    return Reference(features, gamma, kernel, features.mean(0), root, _radius(features), spread)


def _off_diagonal(kernel: Rows) -> float:
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def _radius(features: Rows) -> Rows:
    found: Rows = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(features).kneighbors()[0][:, -1]
    return found


def mmd(features: Rows, real: Reference) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, without bias: 0 on average for equal distributions, and
    so at times a little below 0. At least two images.
    """
    own = _off_diagonal(rbf_kernel(features, gamma=real.gamma))
    both = float(rbf_kernel(features, real.features, gamma=real.gamma).mean())
    return own + real.kernel - 2.0 * both


def frechet(features: Rows, real: Reference) -> float:
    """Squared Frechet distance of Gaussians fitted to both sets, `|m1-m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2))`.

    It falls with the number of images, so compare sets of one size only. At least two images.
    """
    covariance = np.cov(features.T)
    cross = np.sqrt(linalg.eigvalsh(real.root @ covariance @ real.root).clip(min=0)).sum()
    gap = np.square(features.mean(0) - real.mean).sum()
    return float(gap + np.trace(covariance) + np.trace(real.root @ real.root) - 2.0 * cross)


def inside(features: Rows, real: Reference) -> tuple[Rows, Rows]:
    """For each image, whether it lies in the ball of any real one, and the number of such balls over the neighbours
    that a ball holds (density): means of these are precision and density. Each float64 (n).
    """
    balls = (_distances(features, real.features) <= real.radius).astype(np.float64)
    return balls.max(1), balls.sum(1) / NEIGHBOURS


def recall(features: Rows, real: Reference) -> float:
    """Share of real images that lie in the ball of any image of the set; more than five images."""
    return float((_distances(real.features, features) <= _radius(features)).any(1).mean())


def _distances(left: Rows, right: Rows) -> Rows:
    found: Rows = torch.cdist(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    return found


def diversity(features: Rows, labels: NDArray[np.int64], real: Reference) -> float:
    """Mean distance of two images of one prompted class, over that of real digits of the class; mean over classes with
    at least two images (NaN where there is none). 1 is as diverse as real digits, 0 is one image over and over.
    """
    shares = [
        pdist(features[labels == label]).mean() / real.diversity[label]
        for label in range(data.CLASSES)
        if (labels == label).sum() > 1
    ]
    return float(np.mean(shares)) if shares else float("nan")


def measure(images: Tensor, labels: Tensor, *, varied: bool = False) -> Mapping[str, list[float]]:
    """Measure a set of finite images.

    Args:
        images: (m, 1, 8, 8) in [0, 1].
        labels: prompted classes, (m).
        varied: compare with varied digits.

    Returns:
        `precision` and `density` with one number an image; `mmd`, `frechet`, `recall` and `diversity` with one number
        for the set. Those that this few images cannot have are left out.
    """
    if not len(images):
        return {}
    real, features = reference(varied), gold_features(images).double().numpy()
    precise, dense = inside(features, real)
    found = {"precision": precise.tolist(), "density": dense.tolist()}
    if len(features) > 1:
        found |= {"mmd": [mmd(features, real)], "frechet": [frechet(features, real)]}
    if len(features) > NEIGHBOURS:
        found["recall"] = [recall(features, real)]
    spread = diversity(features, labels.numpy(), real)
    return found if np.isnan(spread) else {**found, "diversity": [spread]}
