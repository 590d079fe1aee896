"""Rewards of points, exact judgements of every row, and meters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from concordant.core.errors import DataError
from concordant.core.table import Table
from concordant.kernels import group_mean
from concordant.scoring.reward import reward
from concordant.worlds.flow_ring2d.velocity import COMPONENTS, SHAPE, SPREAD, centres, points

REACH = 3.0
"""A point lies in a component if it is at most so many standard deviations from its centre."""
TIE = 1e-3


def _away(image: Sequence[Any]) -> Tensor:
    """Distances of points to all centres, float64 (n, 8); NaN for points that are not finite."""
    for one in image:
        if np.shape(one) != SHAPE:
            raise DataError(f"an image of this world has shape {SHAPE}, got {np.shape(one)}")
    found = torch.from_numpy(np.asarray(image, dtype=np.float64).reshape(-1, *SHAPE))
    return torch.cdist(points(found), centres())


def _own(values: Tensor, component: Sequence[int]) -> list[float]:
    found: list[float] = values.gather(1, torch.tensor(component, dtype=torch.int64)[:, None])[:, 0].tolist()
    return found


@reward(level="batch", inline=True)
def distance(image: list[Any], component: list[int]) -> list[float]:
    """Minus the distance to the centre of the prompted component."""
    return _own(-_away(image), component)


@reward(level="batch", inline=True)
def posterior(image: list[Any], component: list[int]) -> list[float]:
    """Probability that the point is of the prompted component, given that it is of the ring."""
    return _own((-_away(image).square() / (2 * SPREAD**2)).softmax(1), component)


REWARDS: Mapping[str, Callable[..., Any]] = {"distance": distance, "posterior": posterior}


def evaluate(table: Table) -> dict[str, list[float]]:
    """Judge every row exactly.

    Args:
        table: with the fields image and component.

    Returns:
        One number a row: accuracy (the nearest centre is the prompted one), inside (at most three standard deviations
        from it: 98.9 % of the component's own points), broken (not finite; 0 in accuracy and inside). One number for
        each other row: distance and posterior, the rewards. One number in all: modes, the share of components that
        some point lies in.
    """
    image, component = table.fields["image"], table.fields["component"]
    away, wanted = _away(image), torch.tensor(component, dtype=torch.int64)
    broken = away.isnan().any(1)
    near = away.nan_to_num(torch.inf)
    within = near <= REACH * SPREAD
    judged = {
        "accuracy": ((near.argmin(1) == wanted) & ~broken).double().tolist(),
        "inside": within.gather(1, wanted[:, None])[:, 0].double().tolist(),
        "broken": broken.double().tolist(),
        "modes": [float(within.any(0).sum()) / COMPONENTS] if len(image) else [],
    }
    for name, function in REWARDS.items():
        values = function(image=image, component=component)
        judged[name] = [value for value, bad in zip(values, broken.tolist(), strict=True) if not bad]
    return {name: values for name, values in judged.items() if values}


def meters(table: Table) -> dict[str, float]:
    """Measure diseases on sampled rows.

    Args:
        table: as for `evaluate`, with the column group.

    Returns:
        accuracy, inside, broken: means over rows. spread_distance: mean over groups of the standard deviation of
        `distance` (population form); tied_groups: share of groups where that of `posterior` is below 1e-3. Broken rows
        are left out of both.
    """
    judged = evaluate(table)
    spreads = {
        name: _spread(
            torch.tensor(function(table.fields["image"], table.fields["component"])), table["group"]
        )
        for name, function in REWARDS.items()
    }
    return {
        **{name: float(np.mean(judged[name])) for name in ("accuracy", "inside", "broken")},
        "tied_groups": float((spreads["posterior"] < TIE).double().mean()),
        "spread_distance": float(spreads["distance"].mean()),
    }


def _spread(values: Tensor, group: Tensor) -> Tensor:
    known = ~values.isnan()
    values, group = values[known].double(), group[known]
    first = torch.from_numpy(np.unique(group.numpy(), return_index=True)[1])
    return group_mean((values - group_mean(values, group)).square(), group)[first].sqrt()
