"""Loss of each token from its ratio and advantage. Lower is better; the graph of ratio and logp is kept."""

import torch
from jaxtyping import Float
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.kernels import _validate as check


def _band(kernel: str, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Turn distances from 1 into limits of the ratio."""
    if low is not None and not 0 <= low <= 1:
        raise ConfigError(f"{kernel}: low is the distance below 1, in [0, 1], got {low!r}")
    if high is not None and not high >= 0:
        raise ConfigError(f"{kernel}: high is the distance above 1, at least 0, got {high!r}")
    return None if low is None else 1 - low, None if high is None else 1 + high


def plain_term(ratio: Float[Tensor, "b s"], advantage: Float[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Policy gradient without clipping.

    Formula: `L_t = -rho_t A_t`.

    Args:
        ratio: probability ratio, with graph, shape (b s).
        advantage: advantage of each token, shape (b s).

    Returns:
        Loss of each token, unit of advantage, shape (b s); minimised.

    Degenerate cases: advantage 0 gives 0; NaN stays NaN.

    Differences: with `on_policy_ratio` the gradient is that of REINFORCE.

    Source: REINFORCE [paper].

    >>> plain_term(torch.tensor([[1.5]]), torch.tensor([[2.0]]))
    tensor([[-3.]])
    """
    check.alike("plain_term", "ratio", ratio, "advantage", advantage)
    return -ratio * advantage.detach()


def clip_term(
    ratio: Float[Tensor, "b s"],
    advantage: Float[Tensor, "b s"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    ceiling: float | None = None,
) -> Float[Tensor, "b s"]:
    """Policy gradient that stops once the ratio has moved far enough in the direction of the advantage (PPO).

    Formula: `L_t = -min(rho_t A_t, clamp(rho_t, 1 - low, 1 + high) A_t)`.

    Args:
        ratio: probability ratio, with graph, shape (b s).
        advantage: advantage of each token, shape (b s).
        low: distance below 1, in [0, 1].
        high: distance above 1.
        ceiling: upper limit of the ratio in the first member of the minimum; None for none.

    Returns:
        Loss of each token, unit of advantage, shape (b s); minimised.

    Degenerate cases: advantage 0 gives 0; NaN stays NaN. While ratio is 1 (one update for each table)
    nothing is clipped.

    Differences: DAPO has `high=0.28`. TRL `delta` is `ceiling`. verl's "vanilla" loss is `dual_clip_term`.

    Source: PPO [paper].

    >>> clip_term(torch.tensor([[1.5, 1.5]]), torch.tensor([[1.0, -1.0]]))
    tensor([[-1.2000,  1.5000]])
    """
    check.alike("clip_term", "ratio", ratio, "advantage", advantage)
    bottom, top = _band("clip_term", low, high)
    a = advantage.detach()
    free = ratio if ceiling is None else ratio.clamp(max=ceiling)
    return -torch.minimum(free * a, ratio.clamp(bottom, top) * a)


def dual_clip_term(
    ratio: Float[Tensor, "b s"],
    advantage: Float[Tensor, "b s"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    bound: float = 3.0,
) -> Float[Tensor, "b s"]:
    """`clip_term` whose loss is also bounded where the advantage is negative and the ratio has grown.

    Formula: `L_t = min(clip_term, -bound A_t)` where `A_t < 0`, else `clip_term`.

    Args:
        ratio: probability ratio, with graph, shape (b s).
        advantage: advantage of each token, shape (b s).
        low: distance below 1, in [0, 1].
        high: distance above 1.
        bound: ratio beyond which a negative advantage has no gradient, above 1.

    Returns:
        Loss of each token, unit of advantage, shape (b s); minimised.

    Degenerate cases: advantage 0 gives 0; NaN stays NaN.

    Differences: verl's "vanilla" loss is this with bound 3 (`clip_ratio_c`); DAPO's scripts set 10. TRL has
    no bound.

    Source: dual-clip PPO [paper]; verl 0.9.1 [code].

    >>> dual_clip_term(torch.tensor([[5.0, 1.5]]), torch.tensor([[-1.0, -1.0]]))
    tensor([[3.0000, 1.5000]])
    """
    if not bound > 1:
        raise ConfigError(f"dual_clip_term: bound must exceed 1, got {bound!r}; verl's default is 3")
    check.alike("dual_clip_term", "ratio", ratio, "advantage", advantage)
    loss = clip_term(ratio, advantage, low=low, high=high)
    a = advantage.detach()
    return torch.where(a < 0, torch.minimum(loss, -bound * a), loss)


def cispo_term(
    ratio: Float[Tensor, "b s"],
    logp: Float[Tensor, "b s"],
    advantage: Float[Tensor, "b s"],
    *,
    low: float | None = None,
    high: float | None = 0.2,
) -> Float[Tensor, "b s"]:
    """REINFORCE weighted by a clipped ratio, so that no token loses its gradient (CISPO).

    Formula: `L_t = -sg[clamp(rho_t, 1 - low, 1 + high)] A_t logp_t`, sg = no gradient.

    Args:
        ratio: probability ratio, shape (b s).
        logp: log-probability under the policy, with graph, shape (b s).
        advantage: advantage of each token, shape (b s).
        low: distance below 1, in [0, 1]; None for no lower limit.
        high: distance above 1; None for no upper limit.

    Returns:
        Loss of each token, shape (b s); minimised. Its value means nothing, its gradient does.

    Degenerate cases: advantage 0 gives 0; NaN stays NaN.

    Differences: TRL clamps from above at `epsilon_high` itself: its 5.0 is `high=4.0, low=None`. verl clamps
    both sides: `low=0.2, high=0.2`.

    Source: CISPO (MiniMax-M1) [paper]; TRL 1.16, verl 0.9.1 [code].

    >>> cispo_term(torch.tensor([[1.5]]), torch.tensor([[-2.0]]), torch.tensor([[1.0]]))
    tensor([[2.4000]])
    """
    check.alike("cispo_term", "ratio", ratio, "advantage", advantage)
    check.alike("cispo_term", "ratio", ratio, "logp", logp)
    bottom, top = _band("cispo_term", low, high)
    weight = ratio.detach()
    if bottom is not None or top is not None:
        weight = weight.clamp(bottom, top)
    return -weight * advantage.detach() * logp
