"""Which rollouts to train on."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.core.seeds import Rng
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check

_MODES = ("both", "correct", "incorrect", "joint", "random")


def balanced_drop_counts(
    right: Int[Tensor, "b"], wrong: Int[Tensor, "b"], *, drop: int = 4
) -> Int[Tensor, "2 b"]:
    """How many right and how many wrong rollouts to drop, so that what is kept is as balanced as it can be
    (PROF).

    Formula: `p = clamp(round((right - wrong + drop) / 2), 0, min(drop, right))`, half to even; `q = drop -
    p`, at most `wrong`.

    Args:
        right: right rollouts of a prompt, shape (b).
        wrong: wrong rollouts of a prompt, shape (b).
        drop: rollouts to drop in all, at least 0.

    Returns:
        Shape (2 b): right ones and wrong ones to drop.

    Degenerate cases: a prompt with fewer than `drop` rollouts loses all of them (`process_outcome_filter`
    refuses that).

    Differences: PROF rounds with Python's `round`, which is half to even as well.

    Source: PROF step 3 [code].

    >>> right = torch.arange(9)
    >>> balanced_drop_counts(right, 8 - right)
    tensor([[0, 0, 0, 1, 2, 3, 4, 4, 4],
            [4, 4, 4, 3, 2, 1, 0, 0, 0]])
    """
    check.alike("balanced_drop_counts", "right", right, "wrong", wrong)
    check.between("balanced_drop_counts", "drop", drop, 0, 1 << 31)
    return _drop_counts(right, wrong, torch.full_like(right, drop))


def _drop_counts(right: Tensor, wrong: Tensor, drop: Tensor) -> Tensor:
    half = ((right - wrong + drop).double() / 2).round().long()
    p = half.clamp(min=0).minimum(drop).minimum(right)
    return torch.stack([p, (drop - p).minimum(wrong)])


def process_outcome_filter(
    x: Float[Tensor, "b"],
    outcome: Float[Tensor, "b"],
    group: Int[Tensor, "b"],
    id: Int[Tensor, "b"],
    rng: Rng,
    valid: Bool[Tensor, "b"] | None = None,
    *,
    drop: int = 4,
    mode: str = "both",
) -> Bool[Tensor, "b"]:
    """Drop the rollouts of each group whose process disagrees most with their outcome, keeping right and
    wrong balanced.

    Formula: `balanced_drop_counts` says how many right and wrong ones go; inside each class those with the
    lowest x go first.

    Args:
        x: consistency of process and outcome (`step_consistency`), high is kept, shape (b).
        outcome: 0 or 1, shape (b).
        group: which rows belong to one prompt, shape (b).
        id: row id, shape (b); breaks ties, the lower id goes first.
        rng: stream for the random choices; a row's number depends on its id only.
        valid: which rows are judged, shape (b); None judges all whose x and outcome are not NaN.
        drop: rows to drop from each group; a group with n < drop + 2 judged rows (some failed) loses max(0,
            n - 2).
        mode: "both" ranks both classes by x; "correct" ranks the right ones and draws the wrong ones;
            "incorrect" the reverse; "random" draws both (same counts: the control); "joint" ranks the whole
            group, without balance.

    Returns:
        Shape (b), True where kept.

    Degenerate cases: drop 0 keeps all judged rows; not judged gives False; an outcome that is neither 0 nor
    1, and a drop that would leave fewer than 2 of the largest group, are refused. An all-right group stays
    all right.

    Differences: the release never drops a row whose outcome is neither 0 nor 1, draws by numpy's global
    state, and then cuts the batch to a multiple of the GPU count.

    Source: PROF [paper, code]; "random" [derived].

    >>> x = torch.tensor([0.9, 0.2, 0.7, 0.6, -0.8, -0.1, -0.3, -0.4])
    >>> outcome = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    >>> process_outcome_filter(x, outcome, torch.zeros(8, dtype=torch.long), torch.arange(8), Rng())
    tensor([ True, False,  True, False, False,  True,  True, False])
    """
    check.choice("process_outcome_filter", "mode", mode, _MODES)
    check.between("process_outcome_filter", "drop", drop, 0, 1 << 31)
    check.axes("process_outcome_filter", "x", x, "b")
    check.alike("process_outcome_filter", "x", x, "outcome", outcome)
    check.alike("process_outcome_filter", "x", x, "id", id)
    check.binary("process_outcome_filter", "outcome", outcome)
    known = ~outcome.isnan() & (id >= 0)
    judged = cells.judge("process_outcome_filter", x, group, known if valid is None else valid & known)
    right = judged.take(outcome) == 1
    quota = _quota(judged, right, drop)
    home = judged.cell if mode == "joint" else judged.cell + judged.cells * (~right)
    limit = quota.sum(0).repeat(2) if mode == "joint" else quota.reshape(-1)
    ids = judged.take(id).long()
    drawn = {"both": right & False, "joint": right & False, "random": right | True, "correct": ~right}
    key = torch.where(drawn.get(mode, right), rng.uniform(ids), judged.x)
    order = cells.ranked(key, home, ids)
    sorted_home = home[order]
    first = cells.starts(cells.count(home, limit.numel()))[sorted_home]
    stays = torch.arange(order.numel(), device=x.device) - first >= limit[sorted_home]
    kept = torch.empty_like(right).index_copy_(0, order, stays)
    return judged.put(kept, False, torch.bool)


def _quota(judged: cells.Judged, right: Tensor, drop: int) -> Tensor:
    """How many right and how many wrong rows of each group to drop, shape (2, groups)."""
    n = cells.count(judged.cell, judged.cells)
    largest = int(n.max()) if n.numel() else 0
    if largest and drop > max(largest - 2, 0):
        raise ConfigError(
            f"process_outcome_filter: drop={drop} would leave {largest - drop} of the {largest} rows of the "
            f"largest group; drop at most {max(largest - 2, 0)}, or sample more rows for each prompt"
        )
    good = cells.count(judged.cell[right], judged.cells)
    return _drop_counts(good, n - good, (n - 2).clamp(min=0, max=drop))
