"""Gold judgements of every row, and meters of the diseases that the world has by nature."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from concordant.core.table import Table
from concordant.kernels import group_mean
from concordant.worlds.flow_digits import data, rewards, sets
from concordant.worlds.flow_digits.evaluators import load, log_probabilities, stack

FIRST = ("gold", "distance", "accuracy", "smooth_gold", "cls", "mmd", "diversity")
"""Metrics that tables show first."""
TIE = 1e-3
"""A group whose reward has a smaller standard deviation counts as tied."""


def evaluate(table: Table) -> dict[str, list[float]]:
    """Judge every row by the gold evaluators, and the rows as a set.

    Args:
        table: with the fields image and label; thickness and slant where prompts have them.

    Returns:
        One number a row: gold (probability of the prompted class by the gold classifier), accuracy (it is the gold
        classifier's first choice), cls (probability by the reward classifier), broken (the image is not finite). A
        broken row counts as 0 in gold, accuracy and cls and is left out of all that follows.
        One number for each other row: ink, symmetry, compressibility, smooth_gold (gold minus total variation, what
        the reward smooth_cls should mean), precision, density. With attributes also attributes
        (the reward, by the regressor), distance (its gold form, minus a distance too: class by the gold classifier,
        strokes measured exactly) and thickness_error and slant_error (absolute, in units of prompts); the last three
        leave out images whose strokes cannot be measured, for lack of ink.
        One number in all: mmd, frechet, recall, diversity, see `sets`.
    """
    images, whole = stack(table.fields["image"])
    labels = torch.tensor(table.fields["label"], dtype=torch.int64)[whole]
    gold, cls = (log_probabilities(name, images).exp().double() for name in ("gold", "cls"))
    pick = labels[:, None]
    judged = {
        "gold": _fill(gold.gather(1, pick)[:, 0], whole),
        "accuracy": _fill((gold.argmax(1) == labels).double(), whole),
        "cls": _fill(cls.gather(1, pick)[:, 0], whole),
        "broken": (~whole).double().tolist(),
    }
    kept = [image for image, fine in zip(table.fields["image"], whole.tolist(), strict=True) if fine]
    for function in (rewards.ink, rewards.symmetry, rewards.compressibility):
        judged[function.__name__] = function(kept)
    chance = torch.tensor(judged["gold"], dtype=torch.float64)[whole]
    judged["smooth_gold"] = (chance - rewards.total_variation(images)).tolist()
    if "thickness" in table.fields:
        wanted = torch.tensor([table.fields["thickness"], table.fields["slant"]], dtype=torch.float64).T[
            whole
        ]
        judged |= _strokes(images, labels, wanted, gold.gather(1, pick)[:, 0])
    judged |= sets.measure(images, labels, varied="thickness" in table.fields)
    shown = [*(name for name in FIRST if name in judged), *(name for name in judged if name not in FIRST)]
    return {name: judged[name] for name in shown if judged[name]}


def _fill(values: Tensor, whole: Tensor) -> list[float]:
    """Values of the rows that can be judged, 0 for the others."""
    found: list[float] = torch.zeros(len(whole)).double().masked_scatter(whole, values).tolist()
    return found


def _strokes(images: Tensor, labels: Tensor, wanted: Tensor, gold: Tensor) -> dict[str, list[float]]:
    """What the reward and the exact measures say about prompted attributes."""
    with torch.no_grad():
        seen = load("attributes")(images).double()
    sure = seen[:, :-2].softmax(1).gather(1, labels[:, None])[:, 0]
    pixels = images.permute(0, 2, 3, 1).numpy()
    gap = torch.from_numpy(data.attributes(pixels)) - wanted
    clear = gap.isfinite().all(1)
    return {
        "attributes": (-rewards.distance(sure, seen[:, -2:] - wanted)).tolist(),
        "distance": (-rewards.distance(gold, gap))[clear].tolist(),
        "thickness_error": gap[clear, 0].abs().tolist(),
        "slant_error": gap[clear, 1].abs().tolist(),
    }


def meters(table: Table) -> dict[str, float]:
    """Measure diseases on sampled rows.

    Args:
        table: as for `evaluate`, with the column group.

    Returns:
        accuracy, gold, cls, broken: means over rows. gap: cls minus gold, what the reward claims beyond the truth.
        tied_groups: share of groups whose `cls` has a standard deviation (population form) below 1e-3.
        spread_cls, spread_quality, spread_compressibility and, with attributes, spread_attributes: mean over groups of
        the reward's standard deviation. quality_gold: correlation of the pointwise reward model with the gold
        probability. Broken rows are left out of spreads and correlation; a mean of nothing is NaN.
    """
    judged = evaluate(table)
    group, fields = table["group"], table.fields
    names = ["cls", "quality", "compressibility", *(["attributes"] if "thickness" in fields else [])]
    columns = {name: _reward(name, fields) for name in names}
    spreads = {name: _spread(values, group) for name, values in columns.items()}
    means = {name: _mean(torch.tensor(judged[name])) for name in ("accuracy", "gold", "cls", "broken")}
    return {
        **means,
        "gap": means["cls"] - means["gold"],
        "tied_groups": _mean((spreads["cls"] < TIE).double()),
        **{f"spread_{name}": _mean(values) for name, values in spreads.items()},
        "quality_gold": _correlation(columns["quality"], torch.tensor(judged["gold"]).double()),
    }


def _reward(name: str, fields: Mapping[str, list[Any]]) -> Tensor:
    function = rewards.make("thickness" in fields)[name]
    asked = {key: fields[key] for key in inspect.signature(function).parameters}
    return torch.tensor(function(**asked), dtype=torch.float64)


def _spread(values: Tensor, group: Tensor) -> Tensor:
    """Standard deviation in each group that has a value, one number a group."""
    known = ~values.isnan()
    values, group = values[known], group[known]
    centre = group_mean(values, group)
    first = torch.from_numpy(np.unique(group.numpy(), return_index=True)[1])
    return group_mean((values - centre).square(), group)[first].sqrt()


def _correlation(x: Tensor, y: Tensor) -> float:
    known = ~x.isnan() & ~y.isnan()
    if int(known.sum()) < 2:
        return math.nan
    return float(torch.corrcoef(torch.stack([x[known], y[known]]))[0, 1])


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else math.nan
