"""Fit the frozen evaluators of the digits world."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from generators import draw
from rich.progress import track
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from concordant.policies.networks import ImageNetwork
from concordant.worlds.flow_digits import data
from concordant.worlds.flow_digits.evaluators import FEATURES, Attributes, Classifier, Gold, Pairwise, Quality
from concordant.worlds.flow_digits.prompts import class_codes

DRAWN = 10.0
"""Weight of drawing the image again, against telling its class, in what gold features are fitted for."""
QUALITY_STEPS = 600


def images_of(half: data.Digits) -> Tensor:
    return torch.from_numpy(half.images).permute(0, 3, 1, 2).contiguous()


def labels_of(half: data.Digits) -> Tensor:
    return torch.from_numpy(half.labels)


def fit(module: nn.Module, batches: Iterator[tuple[Tensor, ...]], loss: Callable[..., Tensor],
        steps: int, lr: float, title: str, decay: float = 0.0) -> nn.Module:  # fmt: skip
    """Fit a module by AdamW with a one-cycle schedule; `loss(module, *batch)`."""
    optimiser = torch.optim.AdamW(module.parameters(), lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps)
    for _ in track(range(steps), description=title):
        value = loss(module.train(), *next(batches))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        schedule.step()
    return module.eval()


def draws(size: int, seed: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield random batches for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(tensors[0]), (size,), generator=generator)
        yield tuple(tensor[rows] for tensor in tensors)


def _classify(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(module(images), labels)


def fit_classifier(seed: int) -> nn.Module:
    """Fit the reward classifier on half a, as it is."""
    torch.manual_seed(seed)
    half = data.half("a")
    batches = draws(128, seed, images_of(half), labels_of(half))
    return fit(Classifier(), batches, _classify, 600, 5e-3, "cls", decay=1e-2)


def fit_gold(seed: int, copies: int = 40) -> nn.Module:
    """Fit the gold evaluator on half b: turned, shifted, scaled and noisy variants.

    Its features must also say what the image looks like (a linear map of them draws it again), else set metrics would
    take everything for a digit that resembles none of the other classes.
    """
    torch.manual_seed(seed)
    half, rng = data.half("b"), np.random.default_rng(seed)
    images = np.concatenate(
        [np.stack([_disturb(image, rng) for image in half.images]) for _ in range(copies)]
    )
    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    batches = draws(128, seed, pixels, labels_of(half).repeat(copies))
    both = nn.ModuleDict({"gold": Gold(), "draw": nn.Linear(FEATURES, data.SIDE**2)})

    def loss(module: nn.ModuleDict, images: Tensor, labels: Tensor) -> Tensor:
        features = module["gold"].features(images)
        drawn = (module["draw"](features) - images.flatten(1)).square().mean()
        return functional.cross_entropy(module["gold"].out(features), labels) + DRAWN * drawn

    return fit(both, batches, loss, 1500, 3e-3, "gold", decay=1e-2)["gold"]


def _disturb(image: data.Array, rng: np.random.Generator) -> np.ndarray:
    ink, angle = image[..., 0], rng.normal(0.0, 0.12)
    middle = (data.SIDE - 1) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn / rng.normal(1.0, 0.06, (2, 1))
    offset = middle - turn @ np.full(2, middle) + rng.normal(0.0, 0.3, 2)
    moved = ndimage.affine_transform(ink, turn, offset, order=1)
    noise = rng.normal(0.0, rng.uniform(0.0, 0.15), moved.shape)
    return np.clip(moved + noise, 0.0, 1.0)[..., None]


def fit_attributes(seed: int, copies: int = 20) -> nn.Module:
    """Fit the regressor of class, thickness and slant on varied digits of half a."""
    torch.manual_seed(seed)
    half, rng = data.half("a"), np.random.default_rng(seed)
    images = np.concatenate([half.images, *(data.varied(half.images, rng) for _ in range(copies))])
    wanted = torch.from_numpy(data.attributes(images)).float()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    batches = draws(128, seed, pixels, labels_of(half).repeat(copies + 1), wanted)
    return fit(Attributes(), batches, _attribute_loss, 2000, 3e-3, "attributes")


def _attribute_loss(module: nn.Module, images: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    found = module(images)
    classes, strokes = found[:, : data.CLASSES], found[:, data.CLASSES :]
    return functional.cross_entropy(classes, labels) + (strokes - wanted).square().mean()


LABELS = 1024
"""Judgements that each quality model is fitted on: so many scores, or so many comparisons, of the same images."""
NOISE = 0.25
"""Standard deviation of a judgement, in units of the gold probability that it judges."""
MARGIN = 0.25
"""Difference that a comparison calls a tie."""


class Judged(NamedTuple):
    """Images that the base drew, and what was said about them."""

    images: Tensor
    labels: Tensor
    truth: Tensor
    """Gold probability of the prompted class, (n)."""
    score: Tensor
    """The same with noise, (n)."""
    left: Tensor
    right: Tensor
    """Rows that are compared, of one class each, (n): every image is compared twice."""
    outcome: Tensor
    """0 left, 1 tie, 2 right, with noise, (n)."""


def judge(network: ImageNetwork, gold: nn.Module, count: int, seed: int) -> Judged:
    """Let the base draw images in shuffled classes, and judge them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % data.CLASSES
    pixels = network.decode(draw(network, class_codes(labels), seed)).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        truth = gold(pixels).softmax(1).gather(1, labels[:, None])[:, 0]
    left = torch.arange(count)
    right = torch.empty_like(left)
    for label in range(data.CLASSES):
        rows = left[labels == label]
        right[rows] = rows.roll(1)
    gap = truth[left] - truth[right] + NOISE * torch.randn(count, generator=generator)
    outcome = torch.where(gap.abs() < MARGIN, 1, torch.where(gap > 0, 0, 2))
    score = truth + NOISE * torch.randn(count, generator=generator)
    return Judged(pixels, labels, truth, score, left, right, outcome)


def fit_quality(judged: Judged, seed: int) -> nn.Module:
    """Fit the pointwise reward model on scores."""
    torch.manual_seed(seed)
    batches = draws(64, seed, judged.images, judged.labels, judged.score)

    def loss(module: nn.Module, images: Tensor, labels: Tensor, score: Tensor) -> Tensor:
        return (module(images, labels) - score).square().mean()

    return fit(Quality(), batches, loss, QUALITY_STEPS, 2e-3, "quality", decay=0.1)


def fit_pairwise(judged: Judged, seed: int, *, shuffle: bool) -> nn.Module:
    """Fit the Siamese judge on comparisons, or on comparisons whose outcomes were exchanged at random."""
    torch.manual_seed(seed)
    outcome = judged.outcome[torch.randperm(LABELS)] if shuffle else judged.outcome
    images, labels = judged.images, judged.labels
    pairs = (images[judged.left], images[judged.right], labels[judged.left], outcome)

    def loss(module: nn.Module, left: Tensor, right: Tensor, labels: Tensor, outcome: Tensor) -> Tensor:
        return functional.cross_entropy(module(left, right, labels), outcome)

    title = "shuffled" if shuffle else "pairwise"
    return fit(Pairwise(), draws(64, seed, *pairs), loss, QUALITY_STEPS, 2e-3, title, decay=0.1)


@torch.no_grad()
def quality_facts(module: nn.Module, fresh: Judged) -> dict[str, float]:
    """Correlation with the truth, and share of decided fresh pairs that are ranked right."""
    score = module(fresh.images, fresh.labels)
    decided, won = _truth(fresh)
    right = ((score[fresh.left] > score[fresh.right]) == won)[decided].float().mean()
    correlation = torch.corrcoef(torch.stack([score, fresh.truth]))[0, 1]
    return {"correlation": round(float(correlation), 4), "decided_right": round(float(right), 4)}


@torch.no_grad()
def pair_facts(module: nn.Module, fresh: Judged) -> dict[str, float]:
    """Share of decided fresh pairs that are ranked right, of ties that are found, and of ties among all answers."""
    logits = module(fresh.images[fresh.left], fresh.images[fresh.right], fresh.labels[fresh.left])
    decided, won = _truth(fresh)
    tie = logits.argmax(1) == 1
    numbers = {
        "decided_right": ((logits[:, 0] > logits[:, 2]) == won)[decided].float().mean(),
        "ties_found": tie[~decided].float().mean(),
        "ties_said": tie.float().mean(),
    }
    return {name: round(float(value), 4) for name, value in numbers.items()}


def _truth(fresh: Judged) -> tuple[Tensor, Tensor]:
    gap = fresh.truth[fresh.left] - fresh.truth[fresh.right]
    return gap.abs() >= MARGIN, gap > 0
