"""How token losses add up, as one weight for each token: `loss = (weight * term).sum()`.

Weights are made once for the whole table, so micro-batches, skipped rows and merged tables cannot change a
divisor. All are float32, 0 outside the mask and on rows that do not count; a batch in which nothing counts
has weights 0. `counted` says which rows count, in the divisor and in the sum; None counts all. A row without
masked steps never counts.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.kernels import _validate as check


def _counted(kernel: str, mask: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Steps that count, their number in each row, and the number of rows that count (at least 1)."""
    check.axes(kernel, "mask", mask, "b s")
    check.rows(kernel, mask, "counted", counted)
    steps = mask if counted is None else mask & counted[:, None]
    length = steps.sum(1)
    return steps, length, (length > 0).sum().clamp(min=1)


def rollout_mean(mask: Bool[Tensor, "b s"], counted: Bool[Tensor, "b"] | None = None) -> Float[Tensor, "b s"]:
    """Mean over rollouts of the mean over their tokens (GRPO, GSPO).

    Formula: `w_{i,t} = 1 / (rows * length_i)`.

    Args:
        mask: steps the policy chose, shape (b s).
        counted: rows that count, shape (b); None counts all.

    Returns:
        Weights that sum to 1, shape (b s).

    Degenerate cases: a row without masked steps has weights 0 and is not counted; no rows give 0.

    Differences: verl `seq-mean-token-mean` adds 1e-8 to each length. TRL `loss_type="grpo"` counts rows
    without masked steps.

    Source: GRPO [paper]; verl 0.9.1, TRL 1.16 [code].

    >>> import torch
    >>> rollout_mean(torch.tensor([[True, True], [True, False]]))
    tensor([[0.2500, 0.2500],
            [0.5000, 0.0000]])
    """
    steps, length, rows = _counted("rollout_mean", mask, counted)
    return steps / (length.clamp(min=1) * rows)[:, None]


def token_mean(mask: Bool[Tensor, "b s"], counted: Bool[Tensor, "b"] | None = None) -> Float[Tensor, "b s"]:
    """Mean over all tokens of the table (DAPO).

    Formula: `w_{i,t} = 1 / sum_i length_i`.

    Args:
        mask: steps the policy chose, shape (b s).
        counted: rows that count, shape (b); None counts all.

    Returns:
        Weights that sum to 1, shape (b s).

    Degenerate cases: no tokens give 0.

    Differences: verl `token-mean` and TRL `loss_type="dapo"` with the global token count; TRL "bnpo" divides
    by the tokens of a micro-batch instead.

    Source: DAPO [paper]; verl 0.9.1, TRL 1.16 [code].

    >>> import torch
    >>> token_mean(torch.tensor([[True, True], [True, False]]))
    tensor([[0.3333, 0.3333],
            [0.3333, 0.0000]])
    """
    steps, length, _ = _counted("token_mean", mask, counted)
    return steps / length.sum().clamp(min=1)


def rollout_sum(mask: Bool[Tensor, "b s"], counted: Bool[Tensor, "b"] | None = None) -> Float[Tensor, "b s"]:
    """Mean over rollouts of the sum over their tokens (REINFORCE, RLOO).

    Formula: `w_{i,t} = 1 / rows`.

    Args:
        mask: steps the policy chose, shape (b s).
        counted: rows that count, shape (b); None counts all.

    Returns:
        Weights that sum to the mean length, shape (b s).

    Degenerate cases: a row without masked steps is not counted; no rows give 0.

    Differences: verl `seq-mean-token-sum`.

    Source: REINFORCE [paper]; verl 0.9.1 [code].

    >>> import torch
    >>> rollout_sum(torch.tensor([[True, True], [True, False]]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.0000]])
    """
    steps, _, rows = _counted("rollout_sum", mask, counted)
    return steps / rows


def fixed_length(
    mask: Bool[Tensor, "b s"], counted: Bool[Tensor, "b"] | None = None, *, length: int
) -> Float[Tensor, "b s"]:
    """Mean over rollouts of the sum over their tokens, divided by a constant length (Dr. GRPO).

    Formula: `w_{i,t} = 1 / (rows * length)`.

    Args:
        mask: steps the policy chose, shape (b s).
        counted: rows that count, shape (b); None counts all.
        length: the constant, in tokens: the most a rollout may have.

    Returns:
        Weights, shape (b s).

    Degenerate cases: a row without masked steps is not counted; no rows give 0; a length below 1 is refused.

    Differences: TRL `loss_type="dr_grpo"` with `max_completion_length` (it counts rows without masked
    steps). verl `seq-mean-token-sum-norm` takes the padded width of the micro-batch unless
    `loss_scale_factor` is set.

    Source: Dr. GRPO [paper]; TRL 1.16, verl 0.9.1 [code].

    >>> import torch
    >>> fixed_length(torch.tensor([[True, True], [True, False]]), length=4)
    tensor([[0.1250, 0.1250],
            [0.1250, 0.0000]])
    """
    if length < 1:
        raise ConfigError(f"fixed_length: length must be at least 1 token, got {length!r}")
    steps, _, rows = _counted("fixed_length", mask, counted)
    return steps / (rows * length)
