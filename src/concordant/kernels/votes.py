"""What the answers of a group agree on. Answers are ids: equal id, equal answer."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check


class Vote(NamedTuple):
    """The most frequent answer of the row's group, its share of the votes, and whether the row gave it."""

    winner: Int[Tensor, "b"]
    share: Float[Tensor, "b"]
    agrees: Float[Tensor, "b"]


class _Ballot(NamedTuple):
    """Judged rows, their group and run; of each run its answer, size and group; votes in each group."""

    where: Tensor
    home: Tensor
    run: Tensor
    answer: Tensor
    size: Tensor
    group: Tensor
    votes: Tensor


def _count(kernel: str, answer: Tensor, group: Tensor, valid: Tensor | None) -> _Ballot:
    check.axes(kernel, "answer", answer, "b")
    check.rows(kernel, answer, "group", group)
    check.alike(kernel, "answer", answer, "valid", valid)
    good = (answer >= 0) & (group >= 0)
    where = (good if valid is None else good & valid).nonzero().squeeze(1)
    index, count = cells.number(group[where])
    votes = cells.count(index, count)
    said = answer[where].long()
    order = cells.ranked(said, index)
    run_sorted, first = cells.runs(said[order], index[order])
    run = torch.empty_like(run_sorted).index_copy_(0, order, run_sorted)
    size = cells.count(run_sorted, first.numel())
    return _Ballot(where, index, run, said[order][first], size, index[order][first], votes)


def _column(where: Tensor, values: Tensor, like: Tensor, fill: float | int, dtype: torch.dtype) -> Tensor:
    out = torch.full(like.shape, fill, dtype=dtype, device=like.device)
    return out.index_copy_(0, where, values.to(dtype))


def majority_vote(
    answer: Int[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
) -> Vote:
    """The most frequent answer in each group.

    Formula: `winner_g = argmax_a #{i in g : answer_i = a}`, `share_g = max_a #{...} / n_g`,
    `agrees_i = 1[answer_i = winner_g]`.

    Args:
        answer: answer ids, shape (b); below 0 is missing and does not vote (`label_missing` makes it a vote).
        group: which rows vote together, shape (b).
        valid: which rows vote, shape (b); None takes all with an answer.

    Returns:
        `winner` (b) int64, `share` (b) float32 in (0, 1], `agrees` (b) float32, 0 or 1. A row that does not
        vote gets -1, NaN and NaN.

    Degenerate cases: equal counts go to the smallest answer id; a group of one agrees with itself.

    Differences: `collections.Counter.most_common` (TTRL's release and others) gives a tie to the answer met
    first, so that the order of rows decides.

    Source: majority voting [paper]; tie rule [derived].

    >>> vote = majority_vote(torch.tensor([4, 4, 9, 2, 7]), torch.tensor([0, 0, 0, 1, 1]))
    >>> vote.winner, vote.agrees
    (tensor([4, 4, 4, 2, 2]), tensor([1., 1., 0., 1., 0.]))
    """
    ballot = _count("majority_vote", answer, group, valid)
    top = cells.most(ballot.size, ballot.group, ballot.votes.numel())
    leads = ballot.size == top[ballot.group]
    winner = cells.least(ballot.answer[leads], ballot.group[leads], ballot.votes.numel())[ballot.home]
    share = (top / ballot.votes)[ballot.home]
    agrees = answer[ballot.where] == winner
    return Vote(
        _column(ballot.where, winner, answer, -1, torch.long),
        _column(ballot.where, share, answer, torch.nan, torch.float32),
        _column(ballot.where, agrees, answer, torch.nan, torch.float32),
    )


def answer_entropy(
    answer: Int[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
    *,
    base: float = 2.0,
) -> Float[Tensor, "b"]:
    """Entropy of the answers of the row's group.

    Formula: `H_g = -sum_a p_a log p_a`, `p_a` = share of the votes for answer a.

    Args:
        answer: answer ids, shape (b); below 0 is missing and not counted (`label_missing` makes it an
            answer).
        group: which rows belong to one prompt, shape (b).
        valid: which rows count, shape (b); None takes all with an answer.
        base: of the logarithm: 2 gives bits.

    Returns:
        Shape (b), float32, from 0 to log n; NaN for rows that do not count.

    Degenerate cases: one answer, or one row, gives exactly 0.0.

    Differences: COPO's release adds 1e-8 inside the logarithm, which gives a unanimous group -1.4e-8.

    Source: COPO step 2 [code].

    >>> answer_entropy(torch.tensor([4, 4, 9, 9]), torch.tensor([0, 0, 0, 0]))
    tensor([1., 1., 1., 1.])
    """
    if not base > 1:
        raise ConfigError(f"answer_entropy: base must exceed 1, got {base!r}; 2 gives bits")
    ballot = _count("answer_entropy", answer, group, valid)
    share = ballot.size.double() / ballot.votes[ballot.group]
    surprise = share * -share.log()
    entropy = cells.total(surprise, ballot.group, ballot.votes.numel()).abs() / math.log(base)
    return _column(ballot.where, entropy[ballot.home], answer, torch.nan, torch.float32)
