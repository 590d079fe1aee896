"""One denoising step as one Gaussian action: its coefficients, its sample, its log-probability.

A step of any kind is `mean = coef_x * x + coef_v * out` with a standard deviation `std`, where `out` is what the
network returns (the velocity of a flow, the noise of DDIM). So sampling and re-scoring share `gaussian_step`, and only
the coefficients know the kind. sigma is 1 at noise and 0 at data, `x_s = (1 - s) x0 + s e`, `v = e - x0`; steps go
down. Everything is computed at least in float32, coefficients in float64.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from concordant.core.errors import ConfigError, DataError
from concordant.kernels import _validate as check

KINDS = ("flow", "dance", "cps", "ode")
_REDUCE = ("mean", "sum")

Each = Float[Tensor, "b *e"] | Float[Tensor, ""] | float | int
Row = Float[Tensor, "b"] | Float[Tensor, ""] | float | int


class StepCoefficients(NamedTuple):
    """Factor of the state, factor of the network's output, standard deviation of the step."""

    x: Float[Tensor, "b *e"]
    v: Float[Tensor, "b *e"]
    std: Float[Tensor, "b *e"]


class FlowStep(NamedTuple):
    """State after the step, its mean and standard deviation, its log-probability (None for a step without noise)."""

    prev: Float[Tensor, "b *e"]
    mean: Float[Tensor, "b *e"]
    std: Float[Tensor, "b"]
    logp: Float[Tensor, "b"] | None


def _numbers(kernel: str, values: dict[str, Tensor | float]) -> tuple[list[Tensor], torch.dtype]:
    """Bring numbers and arrays of one shape to float64; return them and the dtype of the result."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    arrays = {name: value for name, value in tensors.items() if value.dim()}
    first = next(iter(arrays), None)
    for name, value in arrays.items():
        check.alike(kernel, str(first), arrays[str(first)], name, value)
    shape = arrays[first].shape if first else ()
    lead = next(iter(tensors.values()), torch.zeros((), dtype=torch.float32))
    wide = [torch.as_tensor(v, dtype=torch.float64, device=lead.device).detach() for v in values.values()]
    return [v.expand(shape) for v in wide], torch.promote_types(lead.dtype, torch.float32)


def _inside(kernel: str, name: str, x: Tensor, low: float | int, high: float | int) -> None:
    """Refuse numbers outside a closed interval; missing (NaN) is let through."""
    odd = (x < low) | (x > high)
    if bool(odd.any()):
        raise DataError(
            f"{kernel}: {name} must lie in [{low:g}, {high:g}], got {x[odd].flatten()[0].item():g}"
        )


def _downwards(kernel: str, name: str, x: Tensor, other: str, y: Tensor) -> None:
    """Refuse a step from data to noise: y must not exceed x."""
    odd = y > x
    if bool(odd.any()):
        raise DataError(
            f"{kernel}: steps go from noise to data, so {other} must not exceed {name}; got {name} = "
            f"{x[odd].flatten()[0].item():g}, {other} = {y[odd].flatten()[0].item():g}; swap them"
        )


def _of_kind(
    kind: str, s: Tensor, nxt: Tensor, a: Tensor, guard: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients where there is noise and the step has a length, float64."""
    dt = nxt - s
    if kind == "cps":
        kept = nxt * (a * math.pi / 2).cos()
        return (1 - nxt) + kept, kept * (1 - s) - (1 - nxt) * s, nxt * (a * math.pi / 2).sin()
    if kind == "dance":
        half = a.square() / (2 * s)
        return 1 + half * dt, (1 + half * (1 - s)) * dt, a * (-dt).sqrt()
    left = torch.where(s < 1, 1 - s, 1 - (nxt if guard is None else guard))
    half = a.square() / (2 * left)
    return 1 + half * dt, (1 + half * (1 - s)) * dt, a * (s / left * -dt).sqrt()


def flow_coefficients(
    sigma: Each, sigma_next: Each, noise: Each, *, kind: str = "flow", guard: float | None = None
) -> StepCoefficients:
    """Coefficients of the steps of a flow: `mean = x_coef * x + v_coef * v`, and the standard deviation.

    Formula: with s = sigma, dt = sigma_next - s, `mean = x + [v + g^2/(2s) (x + (1-s) v)] dt`, `std = g sqrt(-dt)`;
    "flow" has `g = a sqrt(s / (1-s))`, so that the factor of v is `(1 + a^2/2) dt`; "dance" has `g = a`. "cps" has
    `mean = (1-s') x0_hat + s' cos(a pi/2) e_hat`, `std = s' sin(a pi/2)`. "ode" is `x + v dt`, std 0.

    Args:
        sigma: noise of the state before the step, in [0, 1], any shape; or a number.
        sigma_next: noise of the state after it, at most sigma, same shape; or a number.
        noise: level a, at least 0 ("cps": at most 1), a number or one for each step. DenseGRPO's calibrated psi is
            kind "dance" with a level for each step. Not read by "ode".
        kind: "flow" (Flow-GRPO), "dance" (DanceGRPO), "cps" (coefficients preserving) or "ode".
        guard: the sigma that stands in `1 - s` where s = 1, below 1: sigmas[1]. None takes sigma_next, which is
            sigmas[1] in a whole schedule. Only for "flow".

    Returns:
        x, v and std in the shape of the arrays (no axes if all are numbers) and in the dtype of sigma, at least
        float32.

    Degenerate cases: a level of 0 gives exactly x = 1, v = dt, std = 0, so that the step is Euler's bit for bit; so
    does a step of length 0. In the last step (sigma_next 0) "cps" has no noise, "flow" and "dance" have. NaN stays
    NaN. A level so large that the factor of x is below 0 is not refused.

    Differences: Flow-GRPO's first step, guarded with sigmas[1], has std = a for any schedule. The CPS code lets
    the last step be what it is; implementations of "flow" leave the last step out of training.

    Source: Flow-GRPO, DanceGRPO, flow_grpo's CPS variant [paper, code].

    >>> flow_coefficients(torch.tensor([1.0, 0.5]), torch.tensor([0.75, 0.25]), 0.7).std
    tensor([0.7000, 0.3500])
    """
    check.choice("flow_coefficients", "kind", kind, KINDS)
    if guard is not None and not 0 <= guard < 1:
        raise ConfigError(f"flow_coefficients: guard must lie in [0, 1), got {guard!r}; give sigmas[1]")
    (s, nxt, a), dtype = _numbers(
        "flow_coefficients", {"sigma": sigma, "sigma_next": sigma_next, "noise": noise}
    )
    _inside("flow_coefficients", "sigma", s, 0, 1)
    _inside("flow_coefficients", "sigma_next", nxt, 0, 1)
    _downwards("flow_coefficients", "sigma", s, "sigma_next", nxt)
    dt = nxt - s
    one, none = torch.ones_like(dt), torch.zeros_like(dt)
    if kind == "ode":
        return StepCoefficients(one.to(dtype), dt.to(dtype), none.to(dtype))
    _inside("flow_coefficients", "noise", a, 0, 1 if kind == "cps" else math.inf)
    calm = (a == 0) | (dt == 0)
    made = _of_kind(kind, s, nxt, a, guard)
    x, v, std = (torch.where(calm, *pair).to(dtype) for pair in zip((one, dt, none), made, strict=True))
    return StepCoefficients(x, v, std)


def ddim_coefficients(alpha_bar: Each, alpha_bar_next: Each, eta: Each) -> StepCoefficients:
    """Coefficients of DDIM steps for a network that predicts the noise: `mean = x_coef * x + v_coef * eps`.

    Formula: with ab = alpha_bar, ab' = alpha_bar_next, `std^2 = eta^2 (1-ab')/(1-ab) (1-ab/ab')`,
    `mean = sqrt(ab') x0_hat + sqrt(1-ab'-std^2) eps`, `x0_hat = (x - sqrt(1-ab) eps) / sqrt(ab)`.

    Args:
        alpha_bar: cumulated product of alphas before the step, in (0, 1], any shape; or a number.
        alpha_bar_next: the same after the step, at least alpha_bar, same shape; or a number.
        eta: 0 is deterministic, 1 is DDPM's noise; in [0, 1], a number or one for each step.

    Returns:
        x, v (the factor of eps) and std in the shape of the arrays and the dtype of alpha_bar, at least float32.

    Degenerate cases: eta 0 and a step of length 0 give std exactly 0; a step to alpha_bar_next 1 has no noise.
    NaN stays NaN.

    Differences: DDPO's code computes the same in the precision of the latents, and clips std^2 nowhere; here
    `1 - ab' - std^2`, which is never below 0, is kept from being so by rounding.

    Source: DDIM [paper]; DDPO [code].

    >>> ddim_coefficients(torch.tensor([0.25]), torch.tensor([0.5]), 1.0).std
    tensor([0.5774])
    """
    (ab, nxt, level), dtype = _numbers(
        "ddim_coefficients", {"alpha_bar": alpha_bar, "alpha_bar_next": alpha_bar_next, "eta": eta}
    )
    _inside("ddim_coefficients", "alpha_bar", ab, 1e-12, 1)
    _inside("ddim_coefficients", "alpha_bar_next", nxt, 0, 1)
    _downwards("ddim_coefficients", "alpha_bar_next", nxt, "alpha_bar", ab)
    _inside("ddim_coefficients", "eta", level, 0, 1)
    variance = level.square() * (1 - nxt) / (1 - ab) * (1 - ab / nxt)
    variance = torch.where((level == 0) | (nxt == ab), 0.0, variance)
    x = (nxt / ab).sqrt()
    v = (1 - nxt - variance).clamp(min=0).sqrt() - x * (1 - ab).sqrt()
    return StepCoefficients(x.to(dtype), v.to(dtype), variance.sqrt().to(dtype))


def rowwise(kernel: str, name: str, value: Tensor | float, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one number for each row of x, shape (b)."""
    value = torch.as_tensor(value, dtype=dtype, device=x.device)
    if value.dim() == 0:
        return value.expand(x.shape[:1])
    check.rows(kernel, x, name, value)
    return value


def over(row: Tensor, x: Tensor) -> Tensor:
    """Give a row column the axes of x."""
    return row.reshape([-1] + [1] * (x.dim() - 1))


def _density(prev: Tensor, mean: Tensor, std: Tensor, reduce: str) -> Tensor:
    """Log-density over the last axis, which std lacks; 0 where std is 0."""
    noisy = std != 0
    width = torch.where(noisy, std, 1.0)
    gap = torch.where(noisy[..., None], (prev.detach() - mean) / width[..., None], 0.0)
    each = -0.5 * gap.square()
    constant = width.log() + 0.5 * math.log(2 * math.pi)
    if reduce == "mean":
        return torch.where(noisy, each.mean(-1) - constant, 0.0)
    return torch.where(noisy, each.sum(-1) - constant * gap.shape[-1], 0.0)


def gaussian_step(
    x: Float[Tensor, "b *e"],
    out: Float[Tensor, "b *e"],
    coef_x: Row,
    coef_v: Row,
    std: Row,
    prev: Float[Tensor, "b *e"] | None = None,
    noise: Float[Tensor, "b *e"] | None = None,
    *,
    reduce: str = "mean",
) -> FlowStep:
    """Take one step, or score one that was taken: the one function for sampling and re-scoring.

    Formula: `mean = coef_x x + coef_v out`; `prev = mean + std noise` unless given; `logp` as `gaussian_logp`.

    Args:
        x: state before the step, shape (b *e); b are rows of a network batch.
        out: what the network returned for it, with graph when training, shape (b *e).
        coef_x: factor of x, a number or shape (b).
        coef_v: factor of out, a number or shape (b).
        std: standard deviation of the step, a number or shape (b).
        prev: the state after the step, to score it; shape (b *e). None draws it.
        noise: standard normal numbers to draw it with, shape (b *e).
        reduce: "mean" or "sum" over the latent dimensions *e, for logp.

    Returns:
        prev and mean (b *e) and std (b), at least float32, and logp (b) with the graph of `out`; prev is held fixed
        in logp. logp is None where no row has noise.

    Degenerate cases: a row with std 0 has prev = mean and, among rows with noise, logp 0; without `prev`, `noise` is
    needed unless no row has noise.

    Differences: samplers that keep a second formula for re-scoring drift from it; here the ratio before the
    first update is 1 by construction.

    Source: Flow-GRPO, DDPO [paper, code].

    >>> x, v, z = torch.ones(1, 2), torch.full((1, 2), 0.5), torch.ones(1, 2)
    >>> step = gaussian_step(x, v, 0.95, -0.1, 0.2, noise=z)
    >>> step.prev, step.logp
    (tensor([[1.1000, 1.1000]]), tensor([0.1905]))
    """
    check.choice("gaussian_step", "reduce", reduce, _REDUCE)
    check.axes("gaussian_step", "x", x, "b *e")
    for name, other in (("out", out), ("prev", prev), ("noise", noise)):
        check.alike("gaussian_step", "x", x, name, other)
    work = torch.promote_types(x.dtype, torch.float32)
    a, b, width = (
        rowwise("gaussian_step", name, value, x, work)
        for name, value in (("coef_x", coef_x), ("coef_v", coef_v), ("std", std))
    )
    mean = over(a, x) * x.to(work) + over(b, x) * out.to(work)
    calm = width.numel() > 0 and not bool((width != 0).any())
    if prev is None:
        prev = mean if calm else _draw(mean, over(width, x), noise)
    elif noise is not None:
        raise DataError("gaussian_step: got prev and noise; give prev to score a step, noise to draw one")
    logp = None
    if not calm:
        rows, dims = x.shape[0], math.prod(x.shape[1:])
        logp = _density(prev.to(work).reshape(rows, dims), mean.reshape(rows, dims), width, reduce)
    return FlowStep(prev.to(work), mean, width, logp)


def _draw(mean: Tensor, std: Tensor, noise: Tensor | None) -> Tensor:
    if noise is None:
        raise DataError(
            "gaussian_step: a step with noise needs `noise` (standard normal, the shape of x) to be drawn, or `prev` "
            "(the state after it) to be scored; got neither"
        )
    return mean + std * noise.to(mean.dtype)


def flow_sde_step(
    x: Float[Tensor, "b *e"],
    v: Float[Tensor, "b *e"],
    sigma: Row,
    sigma_next: Row,
    noise_level: Row,
    prev: Float[Tensor, "b *e"] | None = None,
    noise: Float[Tensor, "b *e"] | None = None,
    *,
    kind: str = "flow",
    guard: float | None = None,
    reduce: str = "mean",
) -> FlowStep:
    """One stochastic step of a flow: `flow_coefficients`, then `gaussian_step`.

    Formula: as there.

    Args:
        x: state before the step, shape (b *e).
        v: velocity the network returned for it, shape (b *e).
        sigma: noise of x, in [0, 1], a number or shape (b).
        sigma_next: noise after the step, at most sigma, a number or shape (b).
        noise_level: level a of the kind, a number or shape (b).
        prev: the state after the step, to score it, shape (b *e); None draws it.
        noise: standard normal numbers to draw it with, shape (b *e).
        kind: "flow", "dance", "cps" or "ode".
        guard: sigmas[1], in the denominator at sigma 1; None takes sigma_next.
        reduce: "mean" or "sum" over the latent dimensions, for logp.

    Returns:
        prev and mean (b *e), std (b), logp (b) or None.

    Degenerate cases: "ode" and a level of 0 take the Euler step and have no logp.

    Differences: the CPS code's log-probability is `-mean((prev - mean)^2)`, without scale and constant, so that its
    log-ratio is 2 std^2 times the one here.

    Source: Flow-GRPO, DanceGRPO, flow_grpo's CPS variant [paper, code].

    >>> x, v = torch.ones(1, 1), torch.full((1, 1), 0.5)
    >>> flow_sde_step(x, v, 0.5, 0.4, 0.7, kind="cps", noise=torch.zeros(1, 1)).mean
    tensor([[0.6770]])
    """
    check.axes("flow_sde_step", "x", x, "b *e")
    for name, other in (("v", v), ("prev", prev), ("noise", noise)):
        check.alike("flow_sde_step", "x", x, name, other)
    work = torch.promote_types(x.dtype, torch.float32)
    s, nxt, a = (
        value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device=x.device)
        for value in (sigma, sigma_next, noise_level)
    )
    for name, value in (("sigma", s), ("sigma_next", nxt), ("noise_level", a)):
        rowwise("flow_sde_step", name, value, x, work)
    made = flow_coefficients(s, nxt, a, kind=kind, guard=guard)
    return gaussian_step(x, v, *made, prev, noise, reduce=reduce)


def gaussian_logp(
    prev: Float[Tensor, "b s d"],
    mean: Float[Tensor, "b s d"],
    std: Float[Tensor, "b s"],
    *,
    reduce: str = "mean",
) -> Float[Tensor, "b s"]:
    """Log-probability of the sampled state of every step, under the mean the policy has now.

    Formula: `reduce_d [ -(prev - mean)^2 / (2 std^2) - log std - log sqrt(2 pi) ]`.

    Args:
        prev: sampled states, held fixed, shape (b s d).
        mean: means, with graph, shape (b s d).
        std: standard deviation of each step, at least 0, shape (b s).
        reduce: "mean" over the latent dimensions, or "sum", the true log-probability. With "mean" a log-ratio is d
            times smaller, which is why clip ranges are 1e-4 to 1e-5; with "sum" they are 0.1 to 0.2.

    Returns:
        Nats (nats a dimension for "mean"), shape (b s).

    Degenerate cases: a step without noise (std 0) gives 0 and no gradient, whatever its states hold; NaN stays NaN.

    Differences: Flow-GRPO, DanceGRPO and DDPO take the mean. The CPS code's log-probability has neither scale nor
    constant: its log-ratio is 2 std^2 times this one.

    Source: Flow-GRPO, DDPO [code].

    >>> gaussian_logp(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[1.0, 0.0]]))
    tensor([[-1.4189,  0.0000]])
    """
    check.choice("gaussian_logp", "reduce", reduce, _REDUCE)
    check.axes("gaussian_logp", "prev", prev, "b s d")
    check.alike("gaussian_logp", "prev", prev, "mean", mean)
    check.axes("gaussian_logp", "std", std, "b s")
    check.leading("gaussian_logp", "prev", prev, "std", std, 2)
    return _density(prev, mean, std, reduce)
