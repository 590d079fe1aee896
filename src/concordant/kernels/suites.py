"""Rewards from a suite of binary checks: tests of a program, items of a rubric, constraints, sub-goals.

A column of checks [b u] holds 0 or 1 for each check of the row's suite. Suites of different size in one batch are
padded with missing (NaN): a check that no judged row of a group has is not in the group's suite. A check that the
group has but a row lacks was not judged there, and the row's reward is missing.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import ConfigError, DataError
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check


def _suite(kernel: str, checks: Tensor, who: str) -> None:
    """Refuse a suite without checks and results that are neither 0 nor 1."""
    check.axes(kernel, "checks", checks, "b u")
    if checks.shape[0] and not checks.shape[1]:
        raise DataError(
            f"{kernel}: checks has shape {tuple(checks.shape)}: no check at all for {who}; give every prompt a suite "
            "of at least one check, or leave the prompt out"
        )
    check.binary(kernel, "checks", checks)


def _names(group: Tensor) -> str:
    """Name the first few groups, for an error."""
    names = torch.unique(group).tolist()
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def pass_rates(
    checks: Float[Tensor, "b u"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b u"] | None = None,
) -> Float[Tensor, "b u"]:
    """Share of the group's rows that pass each check, written to every judged row of the group.

    Formula: `rho_gj = mean_{i in g} p_ij` over the judged entries. Rows are pooled: where a row is one turn of a
    trajectory, all turns of all trajectories of the group count alike.

    Args:
        checks: 0 or 1, shape (b u).
        group: which rows answer the same prompt, and so share a suite, shape (b).
        valid: which entries are judged, shape (b u); None judges all that are not NaN.

    Returns:
        Shape (b u), in [0, 1], equal for all judged rows of a group; NaN where no row of the group has the check.

    Degenerate cases: a row without any judged check is not judged and gives NaN; a row that lacks one check that
    others have gets its rate all the same (that the row cannot be rewarded is said by `weighted_partial_success`);
    u = 0, and entries other than 0 and 1, are refused.

    Differences: `group_mean` writes only to judged entries and takes any number. Graders that stop at the first
    failed check leave later ones unknown: write those as missing, not as 0.

    Source: VeRPO step 1 [paper].

    >>> pass_rates(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, torch.nan]]), torch.tensor([4, 4, 9]))
    tensor([[1.0000, 0.5000],
            [1.0000, 0.5000],
            [0.0000,    nan]])
    """
    check.rows("pass_rates", checks, "group", group)
    _suite("pass_rates", checks, f"the prompt of group {_names(group)}")
    judged = cells.judge("pass_rates", checks, group, valid, name="checks")
    _, mean, _ = cells.means(judged.x, judged.cell, judged.cells)
    there = judged.put(torch.ones_like(judged.x), 0.0).any(1)
    index, count = cells.number(group)
    rates = mean.reshape(count, -1)[index] if count else checks.detach().double()
    return rates.masked_fill(~there[:, None], math.nan).to(checks.dtype)


def difficulty_weights(x: Float[Tensor, "b *e"], *, sharpness: float = 2.0) -> Float[Tensor, "b *e"]:
    """Weight of a check by how rarely it is passed.

    Formula: `w_j = exp(-sharpness * rho_j)`.

    Args:
        x: pass rate of each check, in [0, 1], shape (b *e).
        sharpness: at least 0; 0 weighs all checks alike.

    Returns:
        Shape (b *e), in [exp(-sharpness), 1]: a check that nobody passes has the largest weight (and earns nobody
        anything).

    Degenerate cases: NaN stays NaN.

    Differences: the first versions of the paper stop here; see `density_calibrate`.

    Source: VeRPO step 2 [paper]; the value 2 is [derived], the paper's is not public.

    >>> difficulty_weights(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.3679, 0.1353])
    """
    check.between("difficulty_weights", "sharpness", sharpness, 0.0, 1e6)
    check.axes("difficulty_weights", "x", x, "b *e")
    return (-sharpness * x.detach().double()).exp().to(x.dtype)


def density_calibrate(
    x: Float[Tensor, "b u"], rate: Float[Tensor, "b u"], *, bandwidth: float = 0.1, eps: float = 1e-6
) -> Float[Tensor, "b u"]:
    """Divide the weight of each check by how many checks of the suite are about as hard.

    Formula: `w'_j = w_j / (N_j + eps)`, `N_j = sum_k exp(-(rho_j - rho_k)^2 / (2 bandwidth^2))`, k = j included.

    Many easy checks then weigh together about as much as one: the sum is taken over levels of difficulty, not over
    checks.

    Args:
        x: weight of each check, shape (b u).
        rate: pass rate of each check, NaN for checks that the suite does not have, shape (b u).
        bandwidth: how far apart two rates are different, above 0; inf counts all checks as equally hard, which
            divides by their number.
        eps: added to the count, at least 0.

    Returns:
        Shape (b u), unit of x. The count is at least 1, so a weight never grows.

    Degenerate cases: a check without a rate gives NaN and is not counted; a suite of one check keeps its weight (for
    eps 0).

    Differences: dividing by the number of checks with the same rounded rate is the histogram version, which jumps
    at the edges of the bins.

    Source: VeRPO step 3 [paper v3]; bandwidth and eps are [derived].

    >>> rate = torch.tensor([[0.75, 0.75, 0.25]])
    >>> density_calibrate(torch.ones(1, 3), rate, eps=0.0)
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    if not bandwidth > 0:
        raise ConfigError(
            f"density_calibrate: bandwidth must be above 0, got {bandwidth!r}; inf switches it off"
        )
    check.between("density_calibrate", "eps", eps, 0.0, math.inf)
    check.axes("density_calibrate", "x", x, "b u")
    check.leading("density_calibrate", "x", x, "rate", rate, 2)
    known = ~rate.isnan()
    if not rate.numel():
        return x.detach()
    spots = rate.detach().double().masked_fill(~known, math.inf)
    levels, home = torch.unique(spots, dim=0, return_inverse=True)  # one row a group
    near = (-0.5 * ((levels[:, :, None] - levels[:, None, :]) / bandwidth).square()).exp()
    crowd = torch.where(levels.isfinite()[:, None, :], near, 0.0).sum(2)[home]
    return torch.where(known, x.detach() / (crowd + eps), math.nan).to(x.dtype)


def weighted_partial_success(
    checks: Float[Tensor, "b u"], weight: Float[Tensor, "b u"]
) -> Float[Tensor, "b"]:
    """Sum of the weights of the checks that a row passes.

    Formula: `r_i = sum_j w_ij p_ij` over the checks of the row's suite, those with a weight.

    Args:
        checks: 0 or 1, shape (b u).
        weight: weight of each check, NaN for checks that the suite does not have, shape (b u). Weights of 1/u make
            r the pass rate.

    Returns:
        Shape (b), unit of the weights.

    Degenerate cases: a row that passes nothing has exactly 0.0; a row with a missing result for a check of its suite,
    or without any weight, is missing; u = 0, and entries other than 0 and 1, are refused.

    Differences: a float pass fraction is another system: give the single results.

    Source: VeRPO step 4 [paper].

    >>> weighted_partial_success(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.25, 0.5, 1.0]]))
    tensor([1.2500])
    """
    _suite("weighted_partial_success", checks, f"{checks.shape[0]} rows")
    check.leading("weighted_partial_success", "checks", checks, "weight", weight, 2)
    listed = ~weight.isnan()
    earned = torch.where(listed, checks.detach().double() * weight.detach().double(), 0.0).sum(1)
    return earned.masked_fill(~listed.any(1), math.nan).to(checks.dtype)


def decayed_outcome(
    x: Float[Tensor, "b"], turns: Int[Tensor, "b"] | None = None, *, decay: float = 0.95
) -> Float[Tensor, "b"]:
    """Outcome of a trajectory, worth less the more turns it took.

    Formula: `r_i = x_i * decay^{T_i}`.

    Args:
        x: outcome, 1 where the last turn passes every check, else 0, shape (b).
        turns: number of turns T of the row's trajectory, shape (b); None means one turn each.
        decay: factor for each turn, the first included, in (0, 1].

    Returns:
        Shape (b), in [0, 1] for outcomes of 0 and 1. A success in one turn is worth `decay`.

    Degenerate cases: a missing outcome, or a number of turns below 0 (missing), gives NaN.

    Differences: a discounted return counts from the last step back, so that there a success at once is worth 1.

    Source: VeRPO step 5 [paper]; the value 0.95 is [derived].

    >>> decayed_outcome(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1, 3, 2]), decay=0.5)
    tensor([0.5000, 0.1250, 0.0000])
    """
    check.axes("decayed_outcome", "x", x, "b")
    check.rows("decayed_outcome", x, "turns", turns)
    if not 0 < decay <= 1:
        raise ConfigError(f"decayed_outcome: decay must lie in (0, 1], got {decay!r}; 1 ignores the turns")
    if turns is None:
        return x.detach() * decay
    worth = torch.pow(decay, turns.double()).masked_fill(turns < 0, math.nan)
    return (x.detach().double() * worth).to(x.dtype)
