"""How much noise each denoising step has, and what follows from it: weights of the steps, calibration of the levels."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from concordant.core.errors import ConfigError, DataError
from concordant.kernels import _validate as check


def _one_schedule(std: Tensor, trainable: Tensor) -> None:
    """Refuse rows whose trainable steps or standard deviations differ."""
    live = trainable.any(1)
    steps = trainable[live]
    raw = torch.where(steps, std[live], 0.0)
    odd = ((steps != steps[:1]) | (raw != raw[:1])).any(1)
    if bool(odd.any()):
        row = int(live.nonzero()[odd][0])
        raise DataError(
            f"noise_aware_weights: row {row} has another schedule (std on the trainable steps) than the rows before "
            f"it: {raw[odd][0].tolist()} instead of {raw[0].tolist()}; weights then say nothing about one step "
            "against the same step of another row; sample one schedule a table, or set mixed=True"
        )


def noise_aware_weights(
    std: Float[Tensor, "b s"],
    trainable: Bool[Tensor, "b s"],
    *,
    inverse: bool = False,
    mixed: bool = False,
) -> Float[Tensor, "b s"]:
    """Weight of each step in the loss in proportion to its noise, mean 1 over the trainable steps (TempFlow-GRPO).

    Formula: `w_t = std_t / mean_{trainable} std`, `std_t = g_t sqrt|dt_t|`.

    The gradient of a step's log-probability is larger the less noise it has; the product of both scales is |dt|
    for Flow-GRPO's noise (times 1 + a^2/2 after the first step), so that early steps are heard again.

    Args:
        std: standard deviation of each step, at least 0, shape (b s).
        trainable: stochastic steps of the schedule, shape (b s): all of them, also where a row records only one.
        inverse: 1/std in place of std: the placebo, which is worse if the direction of the weights matters.
        mixed: allow rows with different schedules, each row normalised alone.

    Returns:
        Shape (b s), no unit, mean 1 over the trainable steps of a row; 0 elsewhere.

    Degenerate cases: a row without trainable steps is 0; one whose trainable steps all have std 0 ("no noise"), and
    a single one for `inverse`, is refused; so are rows of different schedules. std is not read elsewhere.

    Differences: the official scripts are said to divide by one hand-tuned constant for all schedules: the same up to
    the learning rate. With "dance" noise of one level, w is only sqrt(|dt|) rescaled. The level a cancels.

    Source: TempFlow-GRPO [paper]; the normaliser over trainable steps and the placebo are [derived].

    >>> noise_aware_weights(torch.tensor([[0.7, 0.5, 0.0]]), torch.tensor([[True, True, False]]))
    tensor([[1.1667, 0.8333, 0.0000]])
    """
    check.axes("noise_aware_weights", "std", std, "b s")
    check.alike("noise_aware_weights", "std", std, "trainable", trainable)
    raw = torch.where(trainable, std.detach().double(), 0.0)
    if bool((~(raw >= 0)).any()):
        raise DataError("noise_aware_weights: std of a trainable step is missing or below 0")
    silent = (raw == 0) & trainable
    none = silent.any(1) if inverse else trainable.any(1) & (raw == 0).all(1)
    if bool(none.any()):
        raise DataError(
            f"noise_aware_weights: no noise in {'a' if inverse else 'any'} trainable step of row "
            f"{int(none.nonzero()[0])}; a step without noise has no log-probability to weigh: raise the noise level, "
            "or leave the step out of `trainable`"
        )
    if not mixed:
        _one_schedule(std.detach(), trainable)
    if inverse:
        raw = torch.where(trainable, 1 / raw, 0.0)
    mean = raw.sum(1, keepdim=True) / trainable.sum(1, keepdim=True)
    return torch.where(trainable, raw / mean, 0.0).to(std.dtype)


def inverse_step_lengths(
    sigma: Float[Tensor, "b s"], sigma_next: Float[Tensor, "b s"]
) -> Float[Tensor, "b s"]:
    """Weight of each step in the loss against its length, as the repaired ratio of GRPO-Guard is trained with.

    Formula: `w_t = 1 / (sigma_t - sigma_{t+1})`.

    Args:
        sigma: noise level before each step, shape (b s).
        sigma_next: noise level after it, below sigma, shape (b s).

    Returns:
        Shape (b s), no unit, above 1 for every schedule of more than one step.

    Degenerate cases: a step of length 0 is 0, one that goes up is refused; NaN stays NaN.

    Differences: not normalised: the mean weight is the number of steps, which acts on the learning rate.

    Source: Pref-GRPO's trainer [code].

    >>> inverse_step_lengths(torch.tensor([[1.0, 0.75]]), torch.tensor([[0.75, 0.25]]))
    tensor([[4., 2.]])
    """
    check.axes("inverse_step_lengths", "sigma", sigma, "b s")
    check.alike("inverse_step_lengths", "sigma", sigma, "sigma_next", sigma_next)
    length = sigma.double() - sigma_next.double()
    if bool((length < 0).any()):
        raise DataError(
            "inverse_step_lengths: steps go from noise to data, so sigma_next must not exceed sigma"
        )
    return torch.where(length == 0, 0.0, 1.0 / length).to(sigma.dtype)


def calibrate_noise(
    psi: Float[Tensor, "s"],
    gains: Float[Tensor, "b s"],
    cap: Float[Tensor, "s"] | None = None,
    *,
    tolerance: float | int = 2,
    rate: float = 0.01,
    floor: float = 0.05,
) -> Float[Tensor, "s"]:
    """One round of calibration: more noise where gains of both signs are balanced, less where not (DenseGRPO).

    Formula: `psi_t + rate` if `|#{gain > 0} - #{gain < 0}| < tolerance`, else `psi_t - rate`; then at least floor
    and at most cap.

    Args:
        psi: noise level of each step (the diffusion coefficient g), shape (s).
        gains: reward gained by each action of b trajectories drawn with psi, shape (b s).
        cap: largest level of each step, shape (s): `sqrt(2 sigma / |dt|)` keeps the factor of the state from turning
            negative. None for none.
        tolerance: at least 1, a number of trajectories; below 1, a share of them.
        rate: change of psi in a round.
        floor: least psi (cap goes first): the rule alone walks below 0.

    Returns:
        Shape (s), unit of psi.

    Degenerate cases: gains of 0 count on neither side, so that no gain at all is balance; no trajectory, and a
    missing or infinite gain, is refused.

    Differences: the paper's tolerance 2 is a count, so it means less the more trajectories there are; with an even
    number of them it asks for equality. Floor and cap are not in the paper.

    Source: DenseGRPO algorithm 1 [paper]; floor and cap are [derived].

    >>> gains = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0]])
    >>> calibrate_noise(torch.tensor([0.5, 0.5]), gains)
    tensor([0.5100, 0.4900])
    """
    check.axes("calibrate_noise", "psi", psi, "s")
    check.axes("calibrate_noise", "gains", gains, "b s")
    if gains.shape[1:] != psi.shape or (cap is not None and cap.shape != psi.shape):
        raise DataError(
            f"calibrate_noise: psi and cap must have one entry for each of the {gains.shape[1]} steps of gains; got "
            f"psi {tuple(psi.shape)}, cap {tuple(cap.shape) if cap is not None else None}; give one level a step"
        )
    if not gains.shape[0]:
        raise DataError("calibrate_noise: gains has no trajectory; sample some with the present psi first")
    odd = (~gains.isfinite()).nonzero()
    if len(odd):
        sample, step = odd[0].tolist()
        raise DataError(
            f"calibrate_noise: the gain of trajectory {sample} at step {step} is {gains[sample, step].item()}; "
            "leave out trajectories whose reward is missing"
        )
    if not tolerance > 0:
        raise ConfigError(f"calibrate_noise: tolerance must be above 0, got {tolerance!r}")
    unbalance = ((gains > 0).sum(0) - (gains < 0).sum(0)).abs()
    calm = unbalance < (tolerance if tolerance >= 1 else tolerance * gains.shape[0])
    wide = psi.detach().double()
    wide = torch.where(calm, wide + rate, wide - rate).clamp(min=floor)
    return (wide if cap is None else wide.minimum(cap.double())).to(psi.dtype)


def gain_balance(gains: Float[Tensor, "b s"], valid: Bool[Tensor, "b s"] | None = None) -> Float[Tensor, "s"]:
    """Share of positive gains among those that are not 0, at each step: .5 is balance, 0 means all actions harm.

    Formula: `#{gain > 0} / (#{gain > 0} + #{gain < 0})`.

    Args:
        gains: reward gained by each action, shape (b s).
        valid: which entries count, shape (b s); None counts all that are not NaN.

    Returns:
        Shape (s), in [0, 1].

    Degenerate cases: a step without any gain other than 0 is NaN.

    Differences: a meter, not a reward.

    Source: the diagnosis of DenseGRPO [paper]; this number for it is [derived].

    >>> gain_balance(torch.tensor([[1.0, -1.0], [-1.0, -1.0], [2.0, 0.0]]))
    tensor([0.6667, 0.0000])
    """
    check.axes("gain_balance", "gains", gains, "b s")
    check.alike("gain_balance", "gains", gains, "valid", valid)
    there = torch.ones_like(gains, dtype=torch.bool) if valid is None else valid
    up, down = ((gains > 0) & there).sum(0), ((gains < 0) & there).sum(0)
    share = up.double() / (up + down)
    return torch.where(up + down > 0, share, math.nan).to(gains.dtype)
