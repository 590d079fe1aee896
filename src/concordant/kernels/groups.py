"""Statistics inside groups: a group is an id, rows may come in any order, groups may have any size.

All kernels here judge the entries that are not NaN, are `valid` and are in a group (an id below 0 is
missing). Entries that are not judged come back as NaN and move nobody; inf is refused. They compute in
float64 without graph and return the dtype of `x`. Where `x` has more axes than `b`, each position is treated
on its own.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import DataError
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check

_SINGLETON = ("zero", "raw", "missing")


def _alone(result: Tensor, judged: cells.Judged, n: Tensor, singleton: str) -> Tensor:
    """Apply the option for groups in which a single value is judged (whose deviation is 0 already)."""
    if singleton == "zero":
        return result
    single = (n == 1).index_select(0, judged.cell)
    return torch.where(single, judged.x if singleton == "raw" else torch.nan, result)


def _units(judged: cells.Judged, x: Tensor, unit: Tensor | None) -> Tensor | None:
    """Return the unit number of each judged entry."""
    if unit is None:
        return None
    spread = cells.number(unit)[0].reshape([-1] + [1] * (x.dim() - 1)).expand(x.shape)
    return judged.take(spread)


def _known(x: Tensor, valid: Tensor | None, unit: Tensor | None) -> Tensor | None:
    """Leave out entries whose unit is missing."""
    if unit is None:
        return valid
    known = (unit >= 0).reshape([-1] + [1] * (x.dim() - 1)).expand(x.shape)
    return known if valid is None else valid & known


def group_zscore(
    x: Float[Tensor, "b *e"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b *e"] | None = None,
    unit: Int[Tensor, "b"] | None = None,
    *,
    scale: str = "group",
    ddof: int = 1,
    eps: float = 1e-4,
    eps_at: str = "std",
    singleton: str = "zero",
) -> Float[Tensor, "b *e"]:
    """Deviation of each value from the mean of its group, in standard deviations of the group (GRPO).

    Formula: `z_i = (x_i - mean_g x) / (std_g x + eps)`; with `eps_at="var"` the divisor is `sqrt(var_g x +
    eps)`; with `scale="batch"` the standard deviation is that of the raw `x` of the whole batch.

    Args:
        x: values to compare (rewards, any unit), shape (b *e).
        group: which rows are comparable, shape (b).
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.
        unit: rows that share a unit id count once in the statistics, with the mean of their values (several
            agent calls of one episode); shape (b). None counts each row.
        scale: "group" or "batch".
        ddof: 1 divides squares by n - 1, 0 by n.
        eps: added to the standard deviation or to the variance.
        eps_at: "std" or "var".
        singleton: what a group with one judged value (one unit) gets: "zero", "raw" (its own value) or
            "missing".

    Returns:
        Shape (b *e), no unit, mean 0 in each group.

    Degenerate cases: equal values give exactly 0.0; so does a standard deviation of 0; not judged gives NaN.

    Differences: TRL `scale_rewards="group"` is the default here (ddof 1, eps 1e-4), "batch" is
    `scale="batch"`. verl `grpo` is `eps=1e-6, singleton="raw"` (verl divides a singleton by 1 + 1e-6, here
    it is the value itself). OpenRLHF `group_norm` is `eps=1e-9`. The GRPO paper has `ddof=0, eps=0`. In
    float32, TRL and verl give seven copies of 0.35 a deviation from their rounded mean instead of 0. TRL
    gives 0 to a lone judged member by its last `nan_to_num`.

    Source: GRPO (DeepSeekMath) [paper]; constants read in TRL 1.16, verl 0.9.1, OpenRLHF [code].

    >>> x = torch.tensor([1.0, 0.0, 0.0, 0.0])
    >>> group_zscore(x, torch.tensor([7, 7, 7, 7]), eps=0.0)
    tensor([ 1.5000, -0.5000, -0.5000, -0.5000])
    """
    check.choice("group_zscore", "scale", scale, ("group", "batch"))
    check.choice("group_zscore", "eps_at", eps_at, ("std", "var"))
    check.choice("group_zscore", "singleton", singleton, _SINGLETON)
    check.choice("group_zscore", "ddof", ddof, (0, 1))
    check.rows("group_zscore", x, "unit", unit)
    judged = cells.judge("group_zscore", x, group, _known(x, valid, unit))
    units = _units(judged, x, unit)
    inside = cells.moments(judged.x, judged.cell, judged.cells, ddof=ddof, unit=units)
    std = inside.std
    if scale == "batch":
        positions = max(math.prod(x.shape[1:]), 1)
        whole = cells.moments(judged.x, judged.cell % positions, positions, ddof=ddof, unit=units)
        std = whole.std.repeat(judged.cells // positions)
    z = inside.centred / cells.divisor(std, eps, eps_at).index_select(0, judged.cell)
    z = torch.where((std > 0).index_select(0, judged.cell), z, 0.0)
    return judged.put(_alone(z, judged, inside.n, singleton))


def group_center(
    x: Float[Tensor, "b *e"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b *e"] | None = None,
    weight: Float[Tensor, "b"] | None = None,
    *,
    singleton: str = "zero",
) -> Float[Tensor, "b *e"]:
    """Deviation of each value from the mean of its group, not divided by anything (Dr. GRPO).

    Formula: `a_i = x_i - sum_g(w x) / sum_g(w)`, w = 1 without `weight`.

    Args:
        x: values to compare, shape (b *e).
        group: which rows are comparable, shape (b).
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.
        weight: weight of each row in the mean, at least 0, shape (b); None weighs all alike.
        singleton: what a group with one judged value gets: "zero", "raw" (its own value) or "missing".

    Returns:
        Shape (b *e), unit of x.

    Degenerate cases: equal values give exactly 0.0; a group whose weights sum to 0 gives NaN; not judged
    gives NaN.

    Differences: TRL `scale_rewards="none"` and verl `norm_adv_by_std_in_grpo=False` (there with
    `singleton="raw"`). verl `opo` is `weight=` the rollout's length with `singleton="raw"`.

    Source: Dr. GRPO [paper]; OPO [code, verl 0.9.1].

    >>> group_center(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([3, 3, 3, 3]))
    tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    """
    check.choice("group_center", "singleton", singleton, _SINGLETON)
    check.rows("group_center", x, "weight", weight)
    if weight is not None:
        valid = _weighed(x, valid, weight)
    judged = cells.judge("group_center", x, group, valid)
    n, _, centred = cells.means(judged.x, judged.cell, judged.cells)
    if weight is not None:
        w = judged.take(weight.detach().reshape([-1] + [1] * (x.dim() - 1)).expand(x.shape)).double()
        mass = cells.total(w, judged.cell, judged.cells)
        shift = cells.total(w * centred, judged.cell, judged.cells) / mass
        centred = centred - shift.index_select(0, judged.cell)
    return judged.put(_alone(centred, judged, n, singleton))


def _weighed(x: Tensor, valid: Tensor | None, weight: Tensor) -> Tensor:
    """Leave out rows without a weight, refuse negative weights."""
    if bool((weight < 0).any()):
        raise DataError(f"group_center: weight must be at least 0, got {weight.min().item():g}")
    known = (~weight.isnan()).reshape([-1] + [1] * (x.dim() - 1)).expand(x.shape)
    return known if valid is None else valid & known


def group_loo(
    x: Float[Tensor, "b *e"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b *e"] | None = None,
    *,
    singleton: str = "zero",
) -> Float[Tensor, "b *e"]:
    """Deviation of each value from the mean of the others in its group (RLOO).

    Formula: `a_i = x_i - (sum_g x - x_i) / (n - 1) = n / (n - 1) * (x_i - mean_g x)`.

    Args:
        x: values to compare, shape (b *e).
        group: which rows are comparable, shape (b).
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.
        singleton: what a group with one judged value gets: "zero", "raw" (its own value) or "missing".

    Returns:
        Shape (b *e), unit of x.

    Degenerate cases: equal values give exactly 0.0; not judged gives NaN.

    Differences: verl `rloo` is `singleton="raw"`, verl `rloo_vectorized` and TRL are "zero".

    Source: RLOO [paper, code].

    >>> group_loo(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([3, 3, 3, 3]))
    tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    check.choice("group_loo", "singleton", singleton, _SINGLETON)
    judged = cells.judge("group_loo", x, group, valid)
    n, _, centred = cells.means(judged.x, judged.cell, judged.cells)
    factor = (n.double() / (n - 1).clamp(min=1)).index_select(0, judged.cell)
    return judged.put(_alone(centred * factor, judged, n, singleton))


def group_rank(
    x: Float[Tensor, "b *e"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b *e"] | None = None,
    *,
    centred: bool = True,
) -> Float[Tensor, "b *e"]:
    """Place of each value in its group, from lowest to highest; equal values share the mean of their places.

    Formula: `r_i = (#{x_j < x_i} + (#{x_j = x_i} - 1) / 2) / (n - 1)`, in [0, 1]; `centred` takes 1/2 off.

    Args:
        x: values to compare, shape (b *e).
        group: which rows are comparable, shape (b).
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.
        centred: True gives [-0.5, 0.5] with mean 0, False gives [0, 1].

    Returns:
        Shape (b *e), no unit. Unchanged by any increasing map of x.

    Degenerate cases: a group of equal values, or of one, gives 0.0 (0.5 if not centred); not judged gives
    NaN.

    Differences: `scipy.stats.rankdata(method="average")` is `1 + r (n - 1)` with `centred=False`.

    Source: ours [derived].

    >>> group_rank(torch.tensor([10.0, 1.0, 1.0, 0.0]), torch.tensor([3, 3, 3, 3]), centred=False)
    tensor([1.0000, 0.5000, 0.5000, 0.0000])
    """
    judged = cells.judge("group_rank", x, group, valid)
    n = cells.count(judged.cell, judged.cells)
    order = cells.ranked(judged.x, judged.cell)
    home = judged.cell[order]
    run, first = cells.runs(judged.x[order], home)
    middle = first + (cells.count(run, first.numel()) - 1).double() / 2
    place = middle[run] - cells.starts(n)[home]
    last = (n[home] - 1).clamp(min=1)
    share = torch.where(n[home] > 1, place / last, 0.5) - (0.5 if centred else 0.0)
    return judged.put(torch.empty_like(judged.x).index_copy_(0, order, share))


def group_minmax(
    x: Float[Tensor, "b *e"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b *e"] | None = None,
) -> Float[Tensor, "b *e"]:
    """Each value as a share of the range of its group.

    Formula: `(x_i - min_g x) / (max_g x - min_g x)`.

    Args:
        x: values to compare, shape (b *e).
        group: which rows are comparable, shape (b).
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.

    Returns:
        Shape (b *e), in [0, 1], no unit.

    Degenerate cases: equal values (or a single one) give exactly 0.0; not judged gives NaN.

    Differences: implementations that add an epsilon to the range never reach 1; this one does.

    Source: common practice [derived].

    >>> group_minmax(torch.tensor([4.0, 2.0, 3.0, 5.0]), torch.tensor([0, 0, 0, 1]))
    tensor([1.0000, 0.0000, 0.5000, 0.0000])
    """
    judged = cells.judge("group_minmax", x, group, valid)
    low = cells.least(judged.x, judged.cell, judged.cells).index_select(0, judged.cell)
    high = cells.most(judged.x, judged.cell, judged.cells).index_select(0, judged.cell)
    return judged.put(torch.where(high > low, (judged.x - low) / (high - low), 0.0))


def group_mean(
    x: Float[Tensor, "b *e"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b *e"] | None = None,
    unit: Int[Tensor, "b"] | None = None,
) -> Float[Tensor, "b *e"]:
    """Mean of the group, written to each of its judged rows.

    Formula: `m_i = mean_g x`.

    Args:
        x: values, shape (b *e).
        group: which rows belong together, shape (b).
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.
        unit: rows that share a unit id count once, with the mean of their values; shape (b). None counts
            each row.

    Returns:
        Shape (b *e), unit of x, constant inside a group.

    Degenerate cases: equal values give exactly that value; not judged gives NaN.

    Differences: none known.

    Source: arithmetic mean.

    >>> group_mean(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([0.5000, 0.5000, 5.0000])
    """
    check.rows("group_mean", x, "unit", unit)
    judged = cells.judge("group_mean", x, group, _known(x, valid, unit))
    units = _units(judged, x, unit)
    mean = cells.moments(judged.x, judged.cell, judged.cells, unit=units).mean
    return judged.put(mean.index_select(0, judged.cell))


def group_max(
    x: Float[Tensor, "b *e"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b *e"] | None = None,
) -> Float[Tensor, "b *e"]:
    """Largest value of the group, written to each of its judged rows.

    Formula: `m_i = max_g x`.

    Args:
        x: values, shape (b *e).
        group: which rows belong together, shape (b).
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.

    Returns:
        Shape (b *e), unit of x, constant inside a group.

    Degenerate cases: not judged gives NaN.

    Differences: none known.

    Source: maximum.

    >>> group_max(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([1., 1., 5.])
    """
    judged = cells.judge("group_max", x, group, valid)
    return judged.put(cells.most(judged.x, judged.cell, judged.cells).index_select(0, judged.cell))
