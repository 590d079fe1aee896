"""Denoising of other kinds and by one step: the stochastic DDIM step, previews of data and noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from concordant.kernels import _validate as check
from concordant.kernels.flow import FlowStep, Row, ddim_coefficients, gaussian_step, over, rowwise


def ddim_gaussian_step(
    x: Float[Tensor, "b *e"],
    out: Float[Tensor, "b *e"],
    alpha_bar: Row,
    alpha_bar_next: Row,
    eta: Row,
    prev: Float[Tensor, "b *e"] | None = None,
    noise: Float[Tensor, "b *e"] | None = None,
    *,
    reduce: str = "mean",
) -> FlowStep:
    """One stochastic DDIM step: `ddim_coefficients`, then `gaussian_step`.

    Formula: as there.

    Args:
        x: state before the step, shape (b *e).
        out: noise (epsilon) the network predicts for it, shape (b *e).
        alpha_bar: cumulated product of alphas of x, in (0, 1], a number or shape (b).
        alpha_bar_next: the same after the step, a number or shape (b); 1 after the last step.
        eta: 0 is deterministic, 1 is DDPM's noise, a number or shape (b).
        prev: the state after the step, to score it, shape (b *e); None draws it.
        noise: standard normal numbers to draw it with, shape (b *e).
        reduce: "mean" or "sum" over the latent dimensions, for logp.

    Returns:
        prev and mean (b *e), std (b), logp (b) or None.

    Degenerate cases: eta 0 takes the deterministic step and has no logp.

    Differences: DDPO takes the mean over dimensions, PRDP's likelihoods are the sum.

    Source: DDIM [paper]; DDPO [code].

    >>> x, eps = torch.ones(1, 1), torch.full((1, 1), 0.5)
    >>> ddim_gaussian_step(x, eps, 0.25, 0.5, 0.0).mean
    tensor([[1.1554]])
    """
    check.axes("ddim_gaussian_step", "x", x, "b *e")
    for name, other in (("out", out), ("prev", prev), ("noise", noise)):
        check.alike("ddim_gaussian_step", "x", x, name, other)
    work = torch.promote_types(x.dtype, torch.float32)
    now, nxt, level = (
        value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device=x.device)
        for value in (alpha_bar, alpha_bar_next, eta)
    )
    for name, value in (("alpha_bar", now), ("alpha_bar_next", nxt), ("eta", level)):
        rowwise("ddim_gaussian_step", name, value, x, work)
    return gaussian_step(x, out, *ddim_coefficients(now, nxt, level), prev, noise, reduce=reduce)


def one_step_x0(x: Float[Tensor, "b *e"], v: Float[Tensor, "b *e"], sigma: Row) -> Float[Tensor, "b *e"]:
    """Data that a velocity points to: the end of one straight step to sigma 0.

    Formula: `x0_hat = x - sigma v`.

    Args:
        x: noisy state, shape (b *e).
        v: velocity at it, shape (b *e).
        sigma: noise of x, a number or shape (b).

    Returns:
        Shape (b *e).

    Degenerate cases: sigma 0 gives x; NaN stays NaN.

    Differences: previews of one step are blurred; reward models are made for finished images.

    Source: rectified flow [paper].

    >>> one_step_x0(torch.tensor([[1.0]]), torch.tensor([[0.5]]), 0.5)
    tensor([[0.7500]])
    """
    check.alike("one_step_x0", "x", x, "v", v)
    s = rowwise("one_step_x0", "sigma", sigma, x, torch.promote_types(x.dtype, torch.float32))
    return x - over(s, x) * v


def one_step_noise(x: Float[Tensor, "b *e"], v: Float[Tensor, "b *e"], sigma: Row) -> Float[Tensor, "b *e"]:
    """Noise that a velocity comes from.

    Formula: `e_hat = x + (1 - sigma) v`.

    Args:
        x: noisy state, shape (b *e).
        v: velocity at it, shape (b *e).
        sigma: noise of x, a number or shape (b).

    Returns:
        Shape (b *e).

    Degenerate cases: sigma 1 gives x; NaN stays NaN.

    Differences: the score is `-e_hat / sigma`.

    Source: rectified flow [paper].

    >>> one_step_noise(torch.tensor([[1.0]]), torch.tensor([[0.5]]), 0.5)
    tensor([[1.2500]])
    """
    check.alike("one_step_noise", "x", x, "v", v)
    s = rowwise("one_step_noise", "sigma", sigma, x, torch.promote_types(x.dtype, torch.float32))
    return x + over(1 - s, x) * v
