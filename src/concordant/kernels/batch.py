"""Statistics over the whole batch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check


def batch_zscore(
    x: Float[Tensor, "b *e"],
    valid: Bool[Tensor, "b *e"] | None = None,
    mask: Bool[Tensor, "b *e"] | None = None,
    unit: Int[Tensor, "b"] | None = None,
    *,
    ddof: int = 1,
    eps: float = 1e-4,
    eps_at: str = "std",
) -> Float[Tensor, "b *e"]:
    """Deviation of each value from the mean of the batch, in standard deviations of the batch ("whitening").

    Formula: `z = (x - mean x) / (std x + eps)`; with `eps_at="var"`, `z = (x - mean x) / sqrt(var x + eps)`.
    Mean and standard deviation are over all judged entries of `x` together, whatever its axes.

    Args:
        x: values, shape (b *e): (b) whitens over rollouts, (b s) over tokens.
        valid: which entries are judged, shape (b *e); None judges all that are not NaN.
        mask: which entries exist at all (trained tokens), shape (b *e); the others are 0 in the result.
        unit: rows that share a unit id (a prompt) count once, with the mean of their entries; shape (b).
            None counts each entry.
        ddof: 1 divides squares by n - 1, 0 by n.
        eps: added to the standard deviation or to the variance.
        eps_at: "std" or "var".

    Returns:
        Shape (b *e), no unit; mean 0 over the judged entries (over the units, if `unit` is given).

    Degenerate cases: equal values, and a batch of one value, give exactly 0.0; outside `mask` gives 0; not
    judged gives NaN. A mean no larger than the rounding of x itself (its largest value times the dtype's
    epsilon) is taken as 0, so that a 0 (a group without signal) stays exactly 0.

    Differences: TRL `normalize_then_sum` is the default here, over rollouts. verl `masked_whiten` is x of
    shape (b s) with `mask`, `eps=1e-8, eps_at="var"`; it weighs rollouts by length, so that a group without
    signal gets a non-zero advantage (its mean is over tokens), and it fails on a mask with fewer than two
    entries. OpenRLHF `reinforce` has `ddof=0` and a variance floored at 1e-8 instead of an epsilon. COPO's
    prompt level is `unit="group", eps=1e-6`.

    Source: GDPO step 3 [paper, code]; REINFORCE++ [paper]; COPO step 4 [code].

    >>> batch_zscore(torch.tensor([1.0, 1.0, 0.5, 0.0]), unit=torch.tensor([8, 8, 4, 5]), eps=0.0)
    tensor([ 1.,  1.,  0., -1.])
    """
    check.choice("batch_zscore", "ddof", ddof, (0, 1))
    check.choice("batch_zscore", "eps_at", eps_at, ("std", "var"))
    check.alike("batch_zscore", "x", x, "mask", mask)
    check.alike("batch_zscore", "x", x, "valid", valid)
    check.rows("batch_zscore", x, "unit", unit)
    judge = ~x.isnan() if valid is None else valid & ~x.isnan()
    if mask is not None:
        judge = judge & mask
    units = None
    if unit is not None:
        column = unit.reshape([-1] + [1] * (x.dim() - 1))
        judge = judge & (column >= 0)
        units = cells.number(unit)[0].reshape(column.shape).expand(x.shape)[judge]
    whole_batch = bool(judge.all())
    values = (x.detach().reshape(-1) if whole_batch else x.detach().masked_select(judge)).double()
    check.finite("batch_zscore", "x", values)
    one = torch.zeros(1, dtype=torch.long, device=x.device).expand(values.numel())
    whole = cells.moments(values, one, 1, ddof=ddof, unit=units)
    centred = whole.centred
    if unit is None and values.numel() and whole.mean.abs() <= torch.finfo(x.dtype).eps * values.abs().max():
        centred = values  # a mean that the rounding of x alone can make is 0
    z = torch.where(whole.std > 0, centred / cells.divisor(whole.std, eps, eps_at), 0.0)
    if whole_batch:
        return z.to(x.dtype).reshape(x.shape)
    outside = torch.full_like(x, torch.nan, requires_grad=False)
    if mask is not None:
        outside.masked_fill_(~mask, 0.0)
    return outside.masked_scatter_(judge, z.to(x.dtype))
