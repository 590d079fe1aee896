"""Handwritten digits of scikit-learn: halves, prompts' attributes, and variants with other strokes.

The 1,797 images of 8 x 8 come with scikit-learn (UCI "Optical recognition of handwritten digits"). Images are float32
(n, 8, 8, 1) in [0, 1], 1 is ink; latents are the same in [-1, 1], flattened.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]
SIDE = 8
CLASSES = 10
SHAPE = (SIDE, SIDE, 1)


class Digits(NamedTuple):
    """Images and their classes."""

    images: Array
    """(n, 8, 8, 1)."""
    labels: NDArray[np.int64]
    """(n)."""


@cache
def digits() -> Digits:
    """Return all digits, in the order of scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.data / 16.0).astype(np.float32).reshape(-1, *SHAPE)
    return Digits(images, found.target.astype(np.int64))


@cache
def half(name: str) -> Digits:
    """Return half `a` (rewards are fitted on it) or `b` (the gold evaluators): every other image of each class."""
    everything = digits()
    place = np.zeros(len(everything.labels), dtype=np.int64)
    for label in range(CLASSES):
        rows = np.flatnonzero(everything.labels == label)
        place[rows] = np.arange(len(rows))
    chosen = place % 2 == {"a": 0, "b": 1}[name]
    return Digits(everything.images[chosen], everything.labels[chosen])


def measure(images: Array) -> NDArray[np.float64]:
    """Measure stroke thickness and slant.

    Thickness is twice the area of the ink over the length of its outline, in pixels: a stroke of width w and length L
    has area wL and outline 2L. Slant is how far the ink moves right for each pixel up, the regression of column on row.

    Args:
        images: (n, 8, 8, 1) in [0, 1].

    Returns:
        float64 (n, 2), thickness and slant; NaN for an image without ink, or with ink in one row only (no slant).
    """
    ink = np.asarray(images, dtype=np.float64)[..., 0]
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    down, right = np.diff(padded, axis=1)[:, :, :-1], np.diff(padded, axis=2)[:, :-1, :]
    outline = np.sqrt(down**2 + right**2).sum((1, 2))
    area = ink.sum((1, 2))
    row, column = np.mgrid[0:SIDE, 0:SIDE]
    with np.errstate(invalid="ignore", divide="ignore"):
        row_mean, column_mean = (
            (ink * axis).sum((1, 2))[:, None, None] / area[:, None, None] for axis in (row, column)
        )
        away = row - row_mean
        slant = -(ink * away * (column - column_mean)).sum((1, 2)) / (ink * away**2).sum((1, 2))
        return np.stack([2.0 * area / outline, slant], 1)


CENTRE = (1.75, -0.05)
SCALE = (0.3, 0.28)
"""Prompts give thickness and slant in units of SCALE from CENTRE, about the mean and spread of varied digits."""


def attributes(images: Array) -> NDArray[np.float64]:
    """Return thickness and slant as prompts give them, (n, 2); about -2 to 2."""
    return (measure(images) - CENTRE) / SCALE


def varied(images: Array, rng: np.random.Generator) -> Array:
    """Return variants with other strokes: each image is sheared, and made thicker or thinner, by a random amount."""
    return np.stack([_vary(image[..., 0], rng) for image in images])[..., None].astype(np.float32)


def _vary(ink: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    shear, stroke = rng.uniform(-0.45, 0.45), rng.uniform(-0.8, 0.5)
    middle = (SIDE - 1) / 2
    moved = ndimage.affine_transform(ink, [[1.0, 0.0], [shear, 1.0]], [0.0, -shear * middle], order=1)
    plus = ndimage.generate_binary_structure(2, 1)
    other = ndimage.grey_dilation if stroke > 0 else ndimage.grey_erosion
    return moved + abs(stroke) * (other(moved, footprint=plus, mode="constant") - moved)
