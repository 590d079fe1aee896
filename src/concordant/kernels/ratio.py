"""How much more likely the policy now finds the sampled tokens. Part of a loss: these keep the graph of
`logp`.

All have shape (b s) and are 0 outside the mask, so that padding can neither add to a loss nor leak a NaN
gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from concordant.kernels import _validate as check


def _log_ratio(kernel: str, logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """`logp - old_logp` on the mask, else 0; replaced before subtracting, as 0 * NaN is NaN in gradients."""
    check.axes(kernel, "logp", logp, "b s")
    check.alike(kernel, "logp", logp, "old_logp", old_logp)
    check.alike(kernel, "logp", logp, "mask", mask)
    return torch.where(mask, logp, 0.0) - torch.where(mask, old_logp.detach(), 0.0)


def token_ratio(
    logp: Float[Tensor, "b s"],
    old_logp: Float[Tensor, "b s"],
    mask: Bool[Tensor, "b s"],
    *,
    limit: float | None = 20.0,
) -> Float[Tensor, "b s"]:
    """Probability ratio of each token (PPO, GRPO).

    Formula: `rho_t = exp(clamp(logp_t - old_logp_t, -limit, limit))`.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).
        old_logp: log-probability when the tokens were sampled, shape (b s).
        mask: steps the policy chose, shape (b s).
        limit: largest absolute log-ratio; beyond it there is no gradient. None for none.

    Returns:
        Shape (b s), 1 before the first update; 0 outside the mask.

    Degenerate cases: values outside the mask are not read.

    Differences: verl has limit 20, TRL none.

    Source: PPO [paper]; limit verl 0.9.1 [code].

    >>> new, old = torch.tensor([[0.5, -1.0]]).log(), torch.tensor([[0.25, 0.5]]).log()
    >>> token_ratio(new, old, torch.tensor([[True, False]]))
    tensor([[2., 0.]])
    """
    log = _log_ratio("token_ratio", logp, old_logp, mask)
    if limit is not None:
        log = log.clamp(-limit, limit)
    return torch.where(mask, log.exp(), 0.0)


def sequence_ratio(
    logp: Float[Tensor, "b s"],
    old_logp: Float[Tensor, "b s"],
    mask: Bool[Tensor, "b s"],
    *,
    limit: float | None = 10.0,
) -> Float[Tensor, "b s"]:
    """Geometric-mean probability ratio of the whole rollout, written to each of its tokens (GSPO).

    Formula: `log s_t = sg[mean_t (logp - old_logp)] + logp_t - sg[logp_t]`, `s_t = exp(min(log s_t,
    limit))`, sg = no gradient. The value is the same for all tokens; the gradient goes through each token's
    own log-probability.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).
        old_logp: log-probability when the tokens were sampled, shape (b s).
        mask: steps the policy chose, shape (b s).
        limit: largest log-ratio, upwards only. None for none.

    Returns:
        Shape (b s); 0 outside the mask.

    Degenerate cases: a row without masked steps is 0; values outside the mask are not read.

    Differences: verl `gspo` is limit 10 with `rollout_mean`. TRL `importance_sampling_level="sequence"` lets
    the gradient through the mean and has no limit; summed with `rollout_mean` the gradient is the same where
    nothing is clipped.

    Source: GSPO [paper]; form and limit verl 0.9.1 [code].

    >>> zero = torch.zeros(1, 3)
    >>> sequence_ratio(torch.tensor([[0.1, -0.05, 0.2]]), zero, zero == 0)
    tensor([[1.0869, 1.0869, 1.0869]])
    """
    log = _log_ratio("sequence_ratio", logp, old_logp, mask).detach()
    mean = log.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    own = torch.where(mask, logp, 0.0)
    log = mean + own - own.detach()
    if limit is not None:
        log = log.clamp(max=limit)
    return torch.where(mask, log.exp(), 0.0)


def whole_sequence_ratio(
    logp: Float[Tensor, "b s"],
    old_logp: Float[Tensor, "b s"],
    mask: Bool[Tensor, "b s"],
    *,
    limit: float | None = None,
) -> Float[Tensor, "b s"]:
    """Probability ratio of the whole rollout, written to each of its tokens (TRL's RLOO).

    Formula: `rho = exp(clamp(sum_t (logp_t - old_logp_t), -limit, limit))`.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).
        old_logp: log-probability when the tokens were sampled, shape (b s).
        mask: steps the policy chose, shape (b s).
        limit: largest absolute log-ratio. None for none.

    Returns:
        Shape (b s), constant in a row; 0 outside the mask. Leaves any clipping band quickly in long rollouts.

    Degenerate cases: a row without masked steps is 0; values outside the mask are not read.

    Differences: TRL's RLOO has one number for each row and a plain mean over rows; with `rollout_mean` the
    loss and its gradient are the same.

    Source: TRL 1.16 [code].

    >>> zero = torch.zeros(1, 3)
    >>> whole_sequence_ratio(torch.tensor([[0.1, -0.05, 0.2]]), zero, zero == 0)
    tensor([[1.2840, 1.2840, 1.2840]])
    """
    log = _log_ratio("whole_sequence_ratio", logp, old_logp, mask).sum(1, keepdim=True)
    if limit is not None:
        log = log.clamp(-limit, limit)
    return torch.where(mask, log.exp(), 0.0)


def guarded_ratio(
    logp: Float[Tensor, "b s"],
    old_logp: Float[Tensor, "b s"],
    mask: Bool[Tensor, "b s"],
    mean: Float[Tensor, "b s d"],
    old_mean: Float[Tensor, "b s d"],
    std: Float[Tensor, "b s"],
    *,
    limit: float | None = 20.0,
    reduce: str = "mean",
) -> Float[Tensor, "b s"]:
    """Probability ratio of each Gaussian step without the bias and the scale that the step's noise gives it
    (GRPO-Guard).

    Formula: `log rho_t = std_t (logp_t - old_logp_t) + reduce_d (mean - old_mean)^2 / (2 std_t)`, clamped to +-limit.
    For a state sampled as `old_mean + std e` this is `reduce_d e (mean - old_mean)`, which is 0 on average.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).
        old_logp: log-probability when the states were sampled, shape (b s).
        mask: steps the policy chose, shape (b s).
        mean: mean under the policy, with graph, shape (b s d).
        old_mean: mean when the states were sampled, shape (b s d).
        std: standard deviation of each step, shape (b s).
        limit: largest absolute log-ratio; beyond it there is no gradient. None for none.
        reduce: "mean" or "sum" over the latent dimensions, as in the log-probabilities.

    Returns:
        Shape (b s), 1 before the first update; 0 outside the mask.

    Degenerate cases: a masked step without noise (std 0) has ratio 1 without gradient; values outside the mask are
    not read.

    Differences: `token_ratio` of the same steps is below 1 on average, the more the less noise a step has. GRPO-Guard
    then divides the loss of a step by |dt|: give that as its weight. Published clip ranges are 2e-6 to 1e-4.

    Source: GRPO-Guard, as in the Pref-GRPO trainer [code].

    >>> one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    >>> guarded_ratio(one * 0.6, one * 0.475, one > 0, one[None] * 0.5, zero[None], one * 2.0)
    tensor([[1.3668]])
    """
    check.choice("guarded_ratio", "reduce", reduce, ("mean", "sum"))
    log = _log_ratio("guarded_ratio", logp, old_logp, mask)
    check.axes("guarded_ratio", "mean", mean, "b s d")
    check.alike("guarded_ratio", "mean", mean, "old_mean", old_mean)
    check.leading("guarded_ratio", "logp", logp, "mean", mean, 2)
    check.alike("guarded_ratio", "logp", logp, "std", std)
    noisy = mask & (std != 0)
    width = torch.where(noisy, std, 1.0)
    squares = torch.where(noisy[..., None], mean - old_mean.detach(), 0.0).square()
    moved = squares.mean(-1) if reduce == "mean" else squares.sum(-1)
    log = torch.where(noisy, width * log, 0.0) + moved / (2 * width)
    if limit is not None:
        log = log.clamp(-limit, limit)
    return torch.where(mask, log.exp(), 0.0)


def on_policy_ratio(logp: Float[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """A ratio of 1 whose gradient is that of the log-probability (REINFORCE).

    Formula: `exp(logp - sg[logp])`, sg = no gradient.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).

    Returns:
        Shape (b s), 1 everywhere (padding too: the aggregation's weights are 0 there).

    Degenerate cases: NaN stays NaN.

    Differences: GRPO-CARE's release, and TRL when generation and update are aligned, use this form.

    Source: GRPO-CARE [code]; TRL 1.16 [code].

    >>> on_policy_ratio(torch.tensor([[-3.0, -0.5]]))
    tensor([[1., 1.]])
    """
    check.axes("on_policy_ratio", "logp", logp, "b s")
    return (logp - logp.detach()).exp()
