"""Reverse linear recurrences over steps, without a loop over steps. Not public."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from concordant.kernels import _validate as check

_BLOCK = 32
_AT_ONCE = 1 << 20


def work_dtype(x: Tensor) -> torch.dtype:
    """float64 stays, everything else is computed in float32 (sums across blocks in float64)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def reverse_scan(x: Tensor, factor: float) -> Tensor:
    """Return y with `y_t = x_t + factor * y_{t+1}` along the last axis; x [r s] must be finite.

    Blocks of 32 steps are one matrix product with a triangle of powers; what enters a block from its right
    is the same recurrence over the first entries of the blocks, with factor^32, in float64. Depth log32(s),
    cost linear in s.
    """
    rows, steps = x.shape
    if steps == 0 or factor == 0.0:
        return x.clone()
    size = min(_BLOCK, steps)
    blocks = -(-steps // size)
    if blocks * size != steps:
        x = torch.nn.functional.pad(x, (0, blocks * size - steps))
    place = torch.arange(size, device=x.device, dtype=torch.float64)
    gap = place[:, None] - place[None, :]
    powers = torch.where(gap >= 0, factor ** gap.clamp(min=0), 0.0).to(x.dtype)
    y = (x.reshape(rows * blocks, size) @ powers).view(rows, blocks, size)
    if blocks > 1:
        heads = reverse_scan(y[:, :, 0].double(), factor**size)
        entering = torch.zeros_like(heads)
        entering[:, :-1] = heads[:, 1:]
        y.addcmul_(entering.to(x.dtype)[:, :, None], (factor ** (size - place)).to(x.dtype))
    return y.view(rows, blocks * size)[:, :steps]


class Layout(NamedTuple):
    """Where the masked steps of each row go: `place` is None if they come first already."""

    mask: Tensor
    place: Tensor | None

    def pack(self, x: Tensor) -> Tensor:
        """Bring the masked steps of each row to its front, in their order, and put 0 behind them."""
        x = torch.where(self.mask, x.to(work_dtype(x)), 0.0)  # always a copy
        if self.place is None:
            return x
        return x.new_zeros(x.shape[0], x.shape[1] + 1).scatter_(1, self.place, x)[:, :-1].contiguous()

    def unpack(self, y: Tensor) -> Tensor:
        """Undo `pack`; 0 outside the mask. What a reverse scan makes of the zeros behind is 0 already."""
        if self.place is None:
            return y
        return torch.where(self.mask, y.gather(1, self.place.clamp(max=max(y.shape[1] - 1, 0))), 0.0)


def layout(mask: Tensor) -> Layout:
    """Say where each masked step goes, if any row starts late or has holes (steps left out in between)."""
    if mask.shape[1] < 2 or not bool((mask[:, 1:] > mask[:, :-1]).any()):
        return Layout(mask, None)
    return Layout(mask, torch.where(mask, mask.cumsum(1) - 1, mask.shape[1]))


def scan_missing(kernel: str, x: Tensor, factor: float) -> Tensor:
    """`reverse_scan` where a NaN makes its own step and all earlier steps missing (x is used up); inf is refused."""
    gone = None if bool(x.sum().isfinite()) else x.isnan()
    if gone is not None:
        x.masked_fill_(gone, 0.0)
        check.finite(kernel, "a masked step", x)
    y = reverse_scan(x, factor)
    return y if gone is None else y.masked_fill(gone.flip(1).cumsum(1).flip(1) > 0, torch.nan)


def row_blocks(x: Tensor) -> Iterator[slice]:
    """Slices of whole rows, each as large as fits into a cache; scans run block by block, memory is read once."""
    rows = max(_AT_ONCE // max(x.shape[1], 1), 1)
    for start in range(0, x.shape[0], rows):
        yield slice(start, start + rows)
