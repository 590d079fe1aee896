"""What is there and what belongs together: presence of signals, ids made from ids."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import DataError
from concordant.core.seeds import mix
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check


def present(x: Float[Tensor, "k b *e"]) -> Bool[Tensor, "b"]:
    """Whether all stacked signals of the row are there.

    Formula: `all_k x_k is not NaN`.

    Args:
        x: k signals, shape (k b *e).

    Returns:
        Shape (b).

    Degenerate cases: no signals gives True.

    Differences: none known.

    Source: ours [derived].

    >>> present(torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
    tensor([ True, False])
    """
    check.axes("present", "x", x, "k b *e")
    return _rowwise(~x.isnan())


def _rowwise(there: Tensor) -> Tensor:
    """All over the axes other than b of [k b *e]."""
    rows = there.shape[1]
    return there.movedim(1, 0).reshape(rows, there.numel() // rows if rows else 0).all(1)


def present_group(
    x: Float[Tensor, "k b *e"],
    group: Int[Tensor, "b"],
    keep: Bool[Tensor, "b"],
    valid: Bool[Tensor, "k b *e"] | None = None,
) -> Bool[Tensor, "b"]:
    """Whether all kept members of the row's group have all their signals.

    Formula: `keep_i and no kept j in g(i) lacks a signal`.

    Args:
        x: k signals, shape (k b *e).
        group: which rows belong together, shape (b).
        keep: rows that earlier stages kept, shape (b); dropped rows do not count against their group.
        valid: which entries are there, shape (k b *e); None takes all that are not NaN.

    Returns:
        Shape (b); False for dropped rows and rows without a group.

    Degenerate cases: a group without kept members gives False.

    Differences: trainers that drop a whole group for one failed score do this without saying so.

    Source: ours [derived].

    >>> x = torch.tensor([[1.0, float("nan"), 3.0, 4.0]])
    >>> present_group(x, torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool))
    tensor([False, False,  True,  True])
    """
    check.axes("present_group", "x", x, "k b *e")
    check.alike("present_group", "x", x, "valid", valid)
    check.rows("present_group", x.movedim(1, 0), "group", group)
    check.rows("present_group", x.movedim(1, 0), "keep", keep)
    there = _rowwise(~x.isnan() if valid is None else valid & ~x.isnan())
    index, count = cells.number(group)
    broken = torch.zeros(count, dtype=torch.bool, device=x.device)
    broken[index[keep & ~there]] = True
    return keep & (group >= 0) & ~broken[index]


def composite_key(x: Int[Tensor, "k b"]) -> Int[Tensor, "b"]:
    """One id for a tuple of ids: equal tuples share it, different ones do not (up to a 63-bit hash).

    Formula: `h_0 = 0`, `h_j = mix(h_{j-1} xor mix(x_j))` with the SplitMix64 finaliser; the sign bit is
    dropped.

    Args:
        x: k ids, shape (k b); an id below 0 is missing.

    Returns:
        Shape (b), at least 0, the same on every machine and in every batch; -1 where any part is missing.

    Degenerate cases: no parts is refused. Order matters: (1, 2) and (2, 1) differ.

    Differences: none known.

    Source: ours [derived]; SplitMix64 finaliser (Steele, Lea and Flood).

    >>> key = composite_key(torch.tensor([[1, 1, 1, -1], [2, 2, 3, 2]]))
    >>> bool(key[0] == key[1]), bool(key[0] == key[2]), int(key[3])
    (True, False, -1)
    """
    check.axes("composite_key", "x", x, "k b")
    if x.shape[0] == 0:
        raise DataError("composite_key: x stacks no id; name at least one column")
    key = torch.zeros_like(x[0], dtype=torch.long)
    for part in x.long():  # over the k parts
        key = mix(key ^ mix(part))
    return (key & 0x7FFFFFFFFFFFFFFF).masked_fill((x < 0).any(0), -1)


def label_missing(x: Int[Tensor, "b"], *, label: int = (1 << 62) - 1) -> Int[Tensor, "b"]:
    """Make "no answer" an answer of its own, so that votes and entropies count it.

    Formula: `x_i` if `x_i >= 0`, else `label`.

    Args:
        x: ids, shape (b); below 0 is missing.
        label: the id that missing ones get; it loses every tie broken by the smallest id.

    Returns:
        Shape (b), int64.

    Degenerate cases: none.

    Differences: leaving unparseable answers out of an entropy overstates how far the others agree.

    Source: COPO property 6 [derived].

    >>> label_missing(torch.tensor([3, -1]), label=9)
    tensor([3, 9])
    """
    check.axes("label_missing", "x", x, "b")
    check.between("label_missing", "label", label, 0, (1 << 63) - 1)
    return torch.where(x >= 0, x.long(), label)
