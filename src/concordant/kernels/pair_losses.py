"""Losses of pairs of generations: regression to reward differences, and preference by prediction error. Lower is
better; these keep the graph of what the policy computes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.kernels import _validate as check


def _near(log_ratio: Tensor, old: Tensor, clip: float) -> Tensor:
    """Clip each step to the old log-ratio; a gradient only strictly inside."""
    moved = log_ratio - old
    return torch.where(moved.abs() < clip, log_ratio, old + moved.clamp(-clip, clip).detach())


def reward_difference_loss(
    log_ratio_left: Float[Tensor, "p s"],
    log_ratio_right: Float[Tensor, "p s"],
    gap: Float[Tensor, "p"],
    old_left: Float[Tensor, "p s"] | None = None,
    old_right: Float[Tensor, "p s"] | None = None,
    *,
    beta: float,
    clip: float | None = None,
) -> Float[Tensor, "p"]:
    """Squared error of the reward difference that the likelihoods of two generations imply (PRDP).

    Formula: `l = (sum_s log_ratio_left - sum_s log_ratio_right - gap / beta)^2`; with `clip` the larger of l and the
    same from log-ratios clipped step by step to `old +- clip`.

    Zero for all pairs if and only if the policy is `ref exp(r / beta) / Z`. Two generations of one prompt share Z,
    so it cancels.

    Args:
        log_ratio_left: log-probability under the policy minus that under the reference, with graph; 0 on steps
            that are not trained; shape (p s).
        log_ratio_right: the same for the right row, shape (p s).
        gap: reward of the left row minus that of the right one, shape (p).
        old_left: log-ratio when the left row was sampled, shape (p s); None is 0, sampling from the reference.
        old_right: the same for the right row.
        beta: reward units a nat, above 0. With log-probabilities that are means over d dimensions it counts d times
            as much.
        clip: largest change of a step's log-ratio since sampling, above 0; None (or inf) for the plain loss.

    Returns:
        Shape (p), squared nats; minimised. Where both are equal the plain loss gives the gradient.

    Degenerate cases: gap 0 is a target like any other: it draws the log-ratios together. A missing gap gives NaN.

    Differences: REBEL is this without clip and with the sampling policy as the reference. No reward is normalised.

    Source: PRDP [paper].

    >>> left, right = torch.tensor([[0.1, 0.2]]), torch.tensor([[0.0, -0.1]])
    >>> reward_difference_loss(left, right, torch.tensor([1.0]), beta=2.0)
    tensor([0.0100])
    >>> reward_difference_loss(left, right, torch.tensor([1.0]), beta=2.0, clip=0.05)
    tensor([0.1225])
    """
    name = "reward_difference_loss"
    if not 0 < beta < math.inf:
        raise ConfigError(f"{name}: beta must be above 0, got {beta!r}; it is the strength of the divergence")
    if clip is not None and not clip > 0:
        raise ConfigError(f"{name}: clip must be above 0, got {clip!r}; None switches it off")
    check.axes(name, "log_ratio_left", log_ratio_left, "p s")
    for other, values in (
        ("log_ratio_right", log_ratio_right),
        ("old_left", old_left),
        ("old_right", old_right),
    ):
        check.alike(name, "log_ratio_left", log_ratio_left, other, values)
    check.rows(name, log_ratio_left, "gap", gap)
    target = gap.detach() / beta
    plain = (log_ratio_left.sum(1) - log_ratio_right.sum(1) - target).square()
    if clip is None:
        return plain
    left = _near(log_ratio_left, _still(old_left, log_ratio_left), clip)
    right = _near(log_ratio_right, _still(old_right, log_ratio_right), clip)
    clipped = (left.sum(1) - right.sum(1) - target).square()
    return torch.where(clipped > plain, clipped, plain)


def _still(old: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if old is None else old.detach()


def diffusion_dpo_margin(
    error_left: Float[Tensor, "p"],
    error_right: Float[Tensor, "p"],
    ref_error_left: Float[Tensor, "p"],
    ref_error_right: Float[Tensor, "p"],
) -> Float[Tensor, "p"]:
    """How much more the policy has improved on the left image than on the right one, by prediction error.

    Formula: `-[(e_l - e_l^ref) - (e_r - e_r^ref)] / 2`.

    Args:
        error_left: mean squared prediction error of the policy on the preferred image, with graph, shape (p).
        error_right: the same on the other image, at the same noise level and with the same noise.
        ref_error_left: the reference's error on the preferred image, shape (p).
        ref_error_right: the reference's error on the other image, shape (p).

    Returns:
        Shape (p), unit of the errors; `dpo_loss` takes it.

    Degenerate cases: policy equal to reference gives exactly 0; NaN stays NaN.

    Differences: the factor 1/2 stands here, so that beta is that of the published code (2000 to 5000 for Stable
    Diffusion, 100 in flow_grpo's online version). Squared errors are means over dimensions, not sums.

    Source: Diffusion-DPO [code].

    >>> one = torch.ones(1)
    >>> diffusion_dpo_margin(one * 0.5, one * 0.75, one * 0.75, one * 0.75)
    tensor([0.1250])
    """
    check.axes("diffusion_dpo_margin", "error_left", error_left, "p")
    for name, other in (
        ("error_right", error_right),
        ("ref_error_left", ref_error_left),
        ("ref_error_right", ref_error_right),
    ):
        check.alike("diffusion_dpo_margin", "error_left", error_left, name, other)
    return ((error_right - ref_error_right.detach()) - (error_left - ref_error_left.detach())) / 2


def dpo_loss(margin: Float[Tensor, "p"], *, beta: float) -> Float[Tensor, "p"]:
    """Negative log-likelihood of the preference under a logistic choice between the two (DPO).

    Formula: `-log sigmoid(beta * margin)`.

    Args:
        margin: how much the policy favours the preferred row, with graph, shape (p): the difference of the two
            log-ratios to the reference, or `diffusion_dpo_margin`.
        beta: strength, above 0.

    Returns:
        Shape (p), nats; minimised. Margin 0, the policy before the first update, gives log 2.

    Degenerate cases: no overflow at any finite margin; NaN stays NaN.

    Differences: none known.

    Source: DPO [paper].

    >>> dpo_loss(torch.tensor([0.0, 2.0]), beta=1.0)
    tensor([0.6931, 0.1269])
    """
    if not 0 < beta < math.inf:
        raise ConfigError(f"dpo_loss: beta must be above 0, got {beta!r}")
    check.axes("dpo_loss", "margin", margin, "p")
    return torch.nn.functional.softplus(-beta * margin)
