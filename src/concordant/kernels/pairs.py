"""Pairs of rows of one group: which there are, who won, what winning is worth.

A pair is two row indices, `left` and `right`, of the same table. An outcome is the share won by the left row: 1, 0, or
.5 for a tie; missing is NaN. Kernels that only read the two ends work pair by pair and pass missing on; those that add
pairs up take `valid`, of pairs. None keeps a graph.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import DataError
from concordant.core.seeds import Rng, mix
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check


class Pairs(NamedTuple):
    """Row indices of the two ends of each pair."""

    left: Int[Tensor, "p"]
    right: Int[Tensor, "p"]


class IllusoryAdvantage(NamedTuple):
    """Of each row's group: spread of its rewards, what dividing by it multiplies them with, is it below the noise."""

    std: Float[Tensor, "b"]
    range: Float[Tensor, "b"]
    amplification: Float[Tensor, "b"]
    below_floor: Bool[Tensor, "b"]


def _ends(kernel: str, left: Tensor, right: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Check the ends of pairs; return them with missing ones set to 0, and which pairs have both."""
    check.axes(kernel, "left", left, "p")
    check.alike(kernel, "left", left, "right", right)
    for name, end in (("left", left), ("right", right)):
        if end.numel() and int(end.max()) >= rows:
            raise DataError(
                f"{kernel}: {name} points at row {int(end.max())} of {rows} rows; give pairs made from this table"
            )
    return left.clamp(min=0).long(), right.clamp(min=0).long(), (left >= 0) & (right >= 0)


def _at(values: Tensor, end: Tensor, there: Tensor, missing: float) -> Tensor:
    """Value at one end of each pair, `missing` where the pair has no such end."""
    if not values.shape[0]:
        return values.new_full(end.shape, missing)
    return torch.where(there, values.detach()[end], missing)


def _grouped(group: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Judged rows sorted by group (row order inside), their place in their group, and the size of it."""
    judged = group >= 0 if valid is None else valid & (group >= 0)
    rows = judged.nonzero().squeeze(1)
    index, count = cells.number(group[rows])
    order = index.argsort(stable=True)
    size = cells.count(index, count) if count else index
    rank = torch.arange(rows.numel(), device=group.device) - cells.starts(size)[index[order]]
    return rows[order], rank, size[index[order]]


def same_group_pairs(
    group: Int[Tensor, "b"], valid: Bool[Tensor, "b"] | None = None, *, mode: str = "all"
) -> Pairs:
    """Pairs of rows that share a group.

    Formula: "all": every unordered pair, `{(i, j): g(i) = g(j), i < j}`, n (n - 1) / 2 of a group of n; "both": every
    ordered pair, each of those in both orders, `{(i, j): g(i) = g(j), i != j}`.

    Args:
        group: which rows are comparable, shape (b); below 0 is missing.
        valid: which rows take part, shape (b); None takes all that are in a group.
        mode: "all" or "both". A judge that looks at two things may prefer the first: shown both orders, that cancels.

    Returns:
        left and right, shape (p), ordered by left, then right.

    Degenerate cases: a group of one gives none; no pairs at all gives shape (0).

    Differences: the Pref-GRPO code shows each pair once, in row order.

    Source: Pref-GRPO, PRDP [paper]; "both" is [derived].

    >>> same_group_pairs(torch.tensor([7, 7, 4, 7]))
    Pairs(left=tensor([0, 0, 1]), right=tensor([1, 3, 3]))
    """
    check.choice("same_group_pairs", "mode", mode, ("all", "both"))
    check.axes("same_group_pairs", "group", group, "b")
    check.alike("same_group_pairs", "group", group, "valid", valid)
    rows, rank, size = _grouped(group, valid)
    spot = torch.arange(rows.numel(), device=group.device)
    first = (
        spot + 1 if mode == "all" else spot - rank
    )  # where the partners of a row begin, and how many there are
    many = size - rank - 1 if mode == "all" else size - 1
    back = rows.argsort()  # row order
    first, many, rank, spot = first[back], many[back], rank[back], spot[back]
    owner = torch.repeat_interleave(many)
    step = torch.arange(owner.numel(), device=group.device) - cells.starts(many)[owner]
    if mode == "both":
        step = step + (step >= rank[owner])  # skips the row itself
    return Pairs(rows[spot[owner]], rows[first[owner] + step])


def random_pairs(
    group: Int[Tensor, "b"],
    id: Int[Tensor, "b"],
    rng: Rng,
    valid: Bool[Tensor, "b"] | None = None,
    *,
    count: int,
) -> Pairs:
    """At most so many pairs of each group, drawn at random, in random order of the two ends.

    Formula: all unordered pairs of a group sorted by a hash of the stream and the two ids; the first `count`.

    Args:
        group: which rows are comparable, shape (b); below 0 is missing.
        id: unique id of each row, shape (b): what is drawn depends on ids, not on positions.
        rng: the stream to draw from.
        valid: which rows take part, shape (b); None takes all that are in a group.
        count: most pairs of a group, at least 1.

    Returns:
        left and right, shape (p), ordered by left, then right.

    Degenerate cases: a group of one gives none; a group with fewer pairs gives all of them.

    Differences: PRDP takes all or random pairs and does not say how many.

    Source: PRDP [paper]; drawing by hash is [derived].

    >>> drawn = random_pairs(torch.zeros(4).long(), torch.arange(4), Rng(), count=2)
    >>> drawn.left.shape
    torch.Size([2])
    """
    check.between("random_pairs", "count", count, 1, math.inf)
    check.axes("random_pairs", "group", group, "b")
    check.rows("random_pairs", group, "id", id)
    check.rows("random_pairs", group, "valid", valid)
    left, right = same_group_pairs(group, valid)
    low, high = torch.minimum(id[left], id[right]), torch.maximum(id[left], id[right])
    index, groups = cells.number(group[left])
    key = rng.uniform(mix(low.long()) ^ high.long(), 2)
    order = cells.ranked(key[:, 0], index)
    size = cells.count(index, groups) if groups else index
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device) - cells.starts(size)[index[order]]
    kept = place < count
    swap = (key[kept, 1] < 0.5) ^ (id[left[kept]] > id[right[kept]])  # by id, not by position
    one, two = torch.where(swap, right[kept], left[kept]), torch.where(swap, left[kept], right[kept])
    back = (one * group.numel() + two).argsort()
    return Pairs(one[back], two[back])


def best_worst_pairs(
    x: Float[Tensor, "b"], group: Int[Tensor, "b"], valid: Bool[Tensor, "b"] | None = None
) -> Pairs:
    """One pair a group: its best row on the left, its worst on the right.

    Formula: `(argmax_g x, argmin_g x)`.

    Args:
        x: what to compare, shape (b).
        group: which rows are comparable, shape (b); below 0 is missing.
        valid: which rows take part, shape (b); None takes all that are not NaN.

    Returns:
        left and right, shape (p), ordered by left.

    Degenerate cases: a group whose judged rows are all equal, or that has one, gives none; among several best (worst)
    rows the first is taken.

    Differences: online Diffusion-DPO of flow_grpo takes these, ties included.

    Source: flow_grpo's online DPO [code]; ties are [derived].

    >>> best_worst_pairs(torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.tensor([7, 7, 7, 4]))
    Pairs(left=tensor([1]), right=tensor([0]))
    """
    check.axes("best_worst_pairs", "x", x, "b")
    judged = cells.judge("best_worst_pairs", x, group, valid)
    rows = torch.arange(x.shape[0], device=x.device) if judged.where is None else judged.where
    if not rows.numel():
        return Pairs(rows, rows)
    low = cells.least(judged.x, judged.cell, judged.cells)
    high = cells.most(judged.x, judged.cell, judged.cells)
    spot = torch.arange(rows.numel(), device=x.device)
    best = cells.least(
        torch.where(judged.x == cells.at(high, judged.cell), spot, spot.numel()), judged.cell, judged.cells
    )
    worst = cells.least(
        torch.where(judged.x == cells.at(low, judged.cell), spot, spot.numel()), judged.cell, judged.cells
    )
    told = high > low
    left, right = rows[best[told]], rows[worst[told]]
    order = left.argsort()
    return Pairs(left[order], right[order])


def pair_gaps(x: Float[Tensor, "b"], left: Int[Tensor, "p"], right: Int[Tensor, "p"]) -> Float[Tensor, "p"]:
    """How much more the left row has than the right one.

    Formula: `x_left - x_right`.

    Args:
        x: one value for each row, shape (b).
        left: row index, shape (p); below 0 is missing.
        right: row index, shape (p); below 0 is missing.

    Returns:
        Shape (p), unit of x.

    Degenerate cases: a missing value or end at either side gives NaN.

    Differences: none known.

    Source: PRDP [paper].

    >>> pair_gaps(torch.tensor([1.0, 0.25, 2.0]), torch.tensor([0, 1]), torch.tensor([1, 2]))
    tensor([ 0.7500, -1.7500])
    """
    check.axes("pair_gaps", "x", x, "b")
    one, two, there = _ends("pair_gaps", left, right, x.shape[0])
    return _at(x, one, there, math.nan) - _at(x, two, there, math.nan)


def compare_values(
    x: Float[Tensor, "b"], left: Int[Tensor, "p"], right: Int[Tensor, "p"], *, margin: float = 0.0
) -> Float[Tensor, "p"]:
    """Outcome of each pair by a value that both rows have.

    Formula: 1 if `x_left - x_right > margin`, 0 if `< -margin`, else .5.

    Args:
        x: value of each row, higher is better, shape (b).
        left: row index, shape (p); below 0 is missing.
        right: row index, shape (p); below 0 is missing.
        margin: largest difference that is a tie, at least 0, unit of x.

    Returns:
        Share won by the left row, shape (p).

    Degenerate cases: a missing value or end at either side gives NaN.

    Differences: the win rate of these is a rank: the control for pairwise judges.

    Source: the rank-transform control of Pref-GRPO [derived].

    >>> ends = torch.tensor([0, 0]), torch.tensor([1, 2])
    >>> compare_values(torch.tensor([0.5, 0.25, 0.5]), *ends)
    tensor([1.0000, 0.5000])
    """
    check.between("compare_values", "margin", margin, 0.0, math.inf)
    check.axes("compare_values", "x", x, "b")
    one, two, there = _ends("compare_values", left, right, x.shape[0])
    gap = _at(x, one, there, math.nan) - _at(x, two, there, math.nan)
    outcome = torch.where(gap.abs() <= margin, 0.5, (gap > 0).to(x.dtype))
    return torch.where(gap.isnan(), math.nan, outcome)


def win_rate(
    outcome: Float[Tensor, "p"],
    left: Int[Tensor, "p"],
    right: Int[Tensor, "p"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "p"] | None = None,
    *,
    decimals: int | None = None,
) -> Float[Tensor, "b"]:
    """Share of its comparisons that each row won; a tie is half won (Pref-GRPO).

    Formula: `w_i = sum_{pairs with i} share won by i / number of pairs with i`.

    Args:
        outcome: share won by the left row, in [0, 1], shape (p).
        left: row index, shape (p).
        right: row index, shape (p).
        group: which rows are comparable, shape (b); both ends of a pair must share it.
        valid: which pairs count, shape (p); None counts all that are not NaN.
        decimals: round the result; 3 for parity with the published code. None does not.

    Returns:
        Shape (b), in [0, 1]; in a group of n whose pairs are all judged the sum is n / 2.

    Degenerate cases: a row that was never compared is NaN; missing outcomes are not counted. All ties give .5.

    Differences: the published code gives 0 to a row that was never compared, and half a win to both rows of a pair
    whose judgement could not be read. A pair judged twice counts twice.

    Source: Pref-GRPO [code]; missing is [derived].

    >>> left, right = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    >>> win_rate(torch.tensor([1.0, 1.0, 0.5]), left, right, torch.zeros(4).long())
    tensor([1.0000, 0.2500, 0.2500,    nan])
    """
    check.axes("win_rate", "outcome", outcome, "p")
    check.axes("win_rate", "group", group, "b")
    check.alike("win_rate", "outcome", outcome, "left", left)
    check.alike("win_rate", "outcome", outcome, "valid", valid)
    one, two, there = _ends("win_rate", left, right, group.shape[0])
    there = there & ~outcome.isnan() if valid is None else there & valid & ~outcome.isnan()
    one, two, won = one[there], two[there], outcome.detach()[there].double()
    _comparable("win_rate", one, two, won, group)
    rows = torch.cat([one, two])
    wins = cells.total(torch.cat([won, 1 - won]), rows, group.shape[0])
    asked = torch.bincount(rows, minlength=group.shape[0])
    rate = torch.where(asked > 0, wins / asked, math.nan).reshape(group.shape)
    return (rate if decimals is None else rate.round(decimals=decimals)).to(outcome.dtype)


def _comparable(kernel: str, left: Tensor, right: Tensor, won: Tensor, group: Tensor) -> None:
    """Refuse pairs across groups, pairs of a row with itself, and shares outside [0, 1]."""
    odd = (group[left] != group[right]) | (left == right)
    if bool(odd.any()):
        a, b = int(left[odd][0]), int(right[odd][0])
        raise DataError(
            f"{kernel}: rows {a} and {b} are paired but are of groups {int(group[a])} and {int(group[b])}; a pair is "
            "two rows of one group: make pairs with same_group_pairs from the same table"
        )
    if bool(((won < 0) | (won > 1)).any()):
        raise DataError(f"{kernel}: outcome is the share won by the left row, in [0, 1]; got other numbers")


def illusory_advantage(
    x: Float[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
    *,
    floor: float = 0.0,
) -> IllusoryAdvantage:
    """Report of how small the differences are that a group's standard deviation blows up to advantages of about 1.

    Formula: `std_g x` (ddof 1), `max_g x - min_g x`, `1 / std_g x`, `std_g x < floor`.

    Args:
        x: rewards, shape (b).
        group: which rows are comparable, shape (b).
        valid: which rows are judged, shape (b); None judges all that are not NaN.
        floor: noise of the reward, as a standard deviation: what the same image gets when judged twice.

    Returns:
        std, range (unit of x), amplification (1 / that unit) and below_floor, each of shape (b), equal for the judged
        rows of a group. The mean of below_floor over judged rows is the share trained on noise.

    Degenerate cases: std 0 gives amplification NaN: such a group has no advantages; it is below any floor above 0.
    Not judged gives NaN and False.

    Differences: a meter; it changes nothing.

    Source: Pref-GRPO [paper]; the report is [derived].

    >>> report = illusory_advantage(torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0, 0, 0]), floor=0.5)
    >>> report.amplification, report.below_floor
    (tensor([4., 4., 4.]), tensor([True, True, True]))
    """
    check.between("illusory_advantage", "floor", floor, 0.0, math.inf)
    check.axes("illusory_advantage", "x", x, "b")
    judged = cells.judge("illusory_advantage", x, group, valid)
    std = cells.moments(judged.x, judged.cell, judged.cells).std
    low = cells.least(judged.x, judged.cell, judged.cells)
    span = cells.most(judged.x, judged.cell, judged.cells) - low
    loud = torch.where(std > 0, 1 / std, math.nan)
    spread, reach, gain = (judged.put(v.index_select(0, judged.cell)) for v in (std, span, loud))
    below = judged.put((std < floor).index_select(0, judged.cell), False, torch.bool)
    return IllusoryAdvantage(spread, reach, gain, below)
