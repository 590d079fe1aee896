"""Statistics over cells (group x position) of flat arrays: renumbering, sums, exact means, sorting. Not
public.

Values are float64. A mean is taken as `low + mean(x - low)`, so the mean of equal values is exactly that
value and their deviations are exactly 0, whatever the values are.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from concordant.kernels import _validate as check


class Moments(NamedTuple):
    """Of each cell: how many values `n`, their `mean` and `std`; and `centred`, the value minus its cell's
    mean.
    """

    n: Tensor
    mean: Tensor
    std: Tensor
    centred: Tensor


class Judged(NamedTuple):
    """The judged entries of an array, flat, and how to put results back."""

    x: Tensor
    cell: Tensor
    cells: int
    where: Tensor | None
    like: Tensor

    def take(self, other: Tensor) -> Tensor:
        """Return the judged entries of another array of the same shape."""
        flat = other.reshape(-1)
        return flat if self.where is None else flat[self.where]

    def put(self, values: Tensor, fill: float | bool = math.nan, dtype: torch.dtype | None = None) -> Tensor:
        """Write one value for each judged entry into an array of the first array's shape."""
        dtype = dtype or self.like.dtype
        values = values.to(dtype)
        if self.where is None:
            return values.reshape(self.like.shape)
        out = torch.full((self.like.numel(),), fill, dtype=dtype, device=values.device)
        return out.index_copy_(0, self.where, values).reshape(self.like.shape)


def number(ids: Tensor) -> tuple[Tensor, int]:
    """Renumber ids to 0..count-1, in the order of their values (some numbers may stay unused)."""
    ids = ids.long()
    if ids.numel() == 0:
        return ids, 0
    low, high = (int(v) for v in ids.aminmax())
    if high - low < 2 * ids.numel() + 64:
        return ids - low, high - low + 1
    if bool((ids[1:] >= ids[:-1]).all()):
        new = torch.zeros_like(ids)
        new[1:] = ids[1:] != ids[:-1]
        index = new.cumsum(0)
        return index, int(index[-1]) + 1
    unique, index = torch.unique(ids, return_inverse=True)
    return index, unique.numel()


def judge(kernel: str, x: Tensor, group: Tensor | None, valid: Tensor | None, *, name: str = "x") -> Judged:
    """Pick the entries to judge: finite, `valid`, in a group. `group=None` puts all rows in one group."""
    check.axes(kernel, name, x, "b *e")
    check.rows(kernel, x, "group", group)
    check.alike(kernel, name, x, "valid", valid)
    positions = math.prod(x.shape[1:])
    flat = x.detach().reshape(-1)
    good = ~flat.isnan()
    if valid is not None:
        good &= valid.reshape(-1)
    if group is None:
        index, count = torch.zeros(x.shape[0], dtype=torch.long, device=x.device), 1
    else:
        index, count = number(group)
        good &= (group >= 0).repeat_interleave(positions) if positions != 1 else group >= 0
    if positions != 1:
        index = (index[:, None] * positions + torch.arange(positions, device=x.device)).reshape(-1)
    where = None if bool(good.all()) else good.nonzero().squeeze(1)
    if where is not None:
        flat, index = flat[where], index[where]
    flat = flat.double()
    check.finite(kernel, name, flat)
    return Judged(flat, index, count * positions, where, x)


def total(x: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Sum of x in each cell, shape (cells)."""
    if cells == 1:
        return x.sum().reshape(1)
    return torch.zeros(cells, dtype=x.dtype, device=x.device).index_add_(0, cell, x)


def count(cell: Tensor, cells: int) -> Tensor:
    """Number of entries in each cell, int64, shape (cells)."""
    if cells == 1:
        return torch.full((1,), cell.numel(), device=cell.device)
    return torch.bincount(cell, minlength=cells)


def at(values: Tensor, cell: Tensor) -> Tensor:
    """Value of each entry's cell (a single cell is left to broadcast)."""
    return values if values.numel() == 1 else values.index_select(0, cell)


def least(x: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Smallest value in each cell (inf, or the largest integer, where a cell is empty)."""
    top = math.inf if x.is_floating_point() else torch.iinfo(x.dtype).max
    if cells == 1 and x.numel():
        return x.min().reshape(1)
    return torch.full((cells,), top, dtype=x.dtype, device=x.device).scatter_reduce_(0, cell, x, "amin")


def most(x: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Largest value in each cell (-inf where a cell is empty)."""
    return -least(-x, cell, cells)


def means(x: Tensor, cell: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and deviations from the mean; exact for equal values (an empty cell: 0 and NaN)."""
    n = count(cell, cells)
    low = least(x, cell, cells)
    above = x - at(low, cell)
    shift = total(above, cell, cells) / n
    return n, low + shift, above.sub_(at(shift, cell))


def moments(x: Tensor, cell: Tensor, cells: int, *, ddof: int = 1, unit: Tensor | None = None) -> Moments:
    """Two-pass moments of each cell; with `unit`, of the means of the units in each cell."""
    if unit is None:
        n, mean, centred = means(x, cell, cells)
        return Moments(n, mean, _root(centred, cell, n, ddof), centred)
    pair, pairs = number(cell * (int(unit.max()) + 1 if unit.numel() else 1) + unit)
    size, value, _ = means(x, pair, pairs)
    home = torch.zeros(pairs, dtype=torch.long, device=x.device).index_copy_(0, pair, cell)
    used = size > 0
    value, home = value[used], home[used]
    n, mean, spread = means(value, home, cells)
    return Moments(n, mean, _root(spread, home, n, ddof), x - at(mean, cell))


def _root(centred: Tensor, cell: Tensor, n: Tensor, ddof: int) -> Tensor:
    squares = total(centred * centred, cell, n.numel())
    return (squares / (n - ddof).clamp(min=1)).sqrt()


def divisor(std: Tensor, eps: float, eps_at: str) -> Tensor:
    """`std + eps`, or `sqrt(std^2 + eps)`."""
    return std + eps if eps_at == "std" else (std * std + eps).sqrt()


def ranked(key: Tensor, cell: Tensor, tie: Tensor | None = None) -> Tensor:
    """Order that sorts by cell, then key, then tie (then position)."""
    order = torch.arange(key.numel(), device=key.device) if tie is None else tie.argsort(stable=True)
    order = order[key[order].argsort(stable=True)]
    return order[cell[order].argsort(stable=True)]


def starts(n: Tensor) -> Tensor:
    """Position at which each cell starts when entries are sorted by cell."""
    return n.cumsum(0) - n


def runs(*keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the run of equal entries that each entry of sorted keys is in, and where each run begins."""
    new = torch.ones(keys[0].numel(), dtype=torch.bool, device=keys[0].device)
    if new.numel():
        new[1:] = torch.stack([key[1:] != key[:-1] for key in keys]).any(0)
    return new.cumsum(0) - 1, new.nonzero().squeeze(1)
