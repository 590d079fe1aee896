"""Denoising steps as Gaussian actions: the numbers of the sheets, slow oracles, exact identities, degenerate cases."""

import inspect
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from concordant.core.errors import ConfigError, DataError
from concordant.kernels import (
    calibrate_noise,
    ddim_coefficients,
    ddim_gaussian_step,
    flow_coefficients,
    flow_sde_step,
    gain_balance,
    gaussian_kl,
    gaussian_logp,
    gaussian_step,
    guarded_ratio,
    noise_aware_weights,
    one_step_noise,
    one_step_x0,
    token_ratio,
)

NAN = math.nan


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, want, atol=1e-6):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol, equal_nan=True)


def schedule(steps, shift=1.0, dtype=torch.float64):
    s = torch.linspace(1, 0, steps + 1, dtype=dtype)
    return shift * s / (1 + (shift - 1) * s)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- coefficients --------------------------------------------------------------------------------------------------

ONE, HALF = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "s", "nxt", "a", "mean", "std"),
    [
        ("flow", 0.5, 0.4, 0.7, 0.88875, 0.221359436),
        ("dance", 0.5, 0.4, 0.3, 0.93875, 0.094868330),
        ("cps", 0.5, 0.4, 0.7, 0.676995250, 0.356402610),
        ("flow", 1.0, 0.9, 0.7, 0.705, 0.7),
        ("ode", 0.5, 0.4, 0.7, 0.95, 0.0),
        ("cps", 0.1, 0.0, 0.7, 0.95, 0.0),
    ],
)
def test_steps_by_hand(kind, s, nxt, a, mean, std):
    step = flow_sde_step(ONE, HALF, s, nxt, a, kind=kind, noise=ONE)
    close(step.mean, [[mean]], 1e-9)
    close(step.std, [std], 1e-9)
    close(step.prev, [[mean + std]], 2e-9)
    assert (step.logp is None) == (std == 0)


def test_log_probability_by_hand():
    mean = f64([0.88875])
    close(flow_sde_step(ONE, HALF, 0.5, 0.4, 0.7, prev=mean).logp, [0.589028957], 1e-9)
    close(
        flow_sde_step(ONE, HALF, 0.5, 0.4, 0.7, prev=mean + 0.05**0.5 * 0.98**0.5).logp, [0.089028957], 1e-6
    )
    width = flow_sde_step(ONE, HALF, 0.5, 0.4, 0.7, prev=mean).std
    close(flow_sde_step(ONE, HALF, 0.5, 0.4, 0.7, prev=mean + width[:, None]).logp, [0.089028957], 1e-9)


def slow_mean_and_std(kind, x, v, s, nxt, a, first):
    """The general form of the sheet, one number at a time."""
    dt = nxt - s
    if kind == "cps":
        x0, e = x - s * v, x + (1 - s) * v
        angle = a * math.pi / 2
        return (1 - nxt) * x0 + nxt * math.cos(angle) * e, nxt * math.sin(angle)
    g = a if kind == "dance" else a * math.sqrt(s / (1 - (first if s == 1 else s)))
    score = -(x + (1 - s) * v) / s
    return x + (v - g * g / 2 * score) * dt, g * math.sqrt(-dt)


@pytest.mark.parametrize("kind", ["flow", "dance", "cps"])
@pytest.mark.parametrize(("steps", "shift"), [(4, 1.0), (10, 3.0), (25, 5.0)])
def test_coefficients_equal_the_general_form(kind, steps, shift):
    s = schedule(steps, shift)
    x, v, a = normal(steps), normal(steps, seed=1), torch.linspace(0.1, 1.0, steps, dtype=torch.float64)
    made = flow_coefficients(s[:-1], s[1:], a, kind=kind, guard=float(s[1]))
    for k in range(steps):
        mean, std = slow_mean_and_std(kind, *(float(t[k]) for t in (x, v, s[:-1], s[1:], a)), float(s[1]))
        close(made.x[k] * x[k] + made.v[k] * v[k], mean, 1e-12)
        close(made.std[k], std, 1e-12)


def test_the_factor_of_v_is_one_plus_half_a_squared_times_dt():
    s = schedule(10, 3.0)
    made = flow_coefficients(s[1:-1], s[2:], 0.7)
    assert torch.equal(made.v, (1 + f64(0.7).square() / 2)[0] * (s[2:] - s[1:-1]))
    close(made.x, 1 + 0.49 * (s[2:] - s[1:-1]) / (2 * (1 - s[1:-1])), 1e-15)


def test_the_first_step_has_std_a_for_any_schedule_and_the_guard_is_sigmas_1():
    for steps, shift in ((4, 1.0), (4, 3.0), (25, 5.0)):
        s = schedule(steps, shift)
        close(flow_coefficients(s[:1], s[1:2], 0.7).std, [0.7], 1e-12)
        explicit = flow_coefficients(s[:-1], s[1:], 0.7, guard=float(s[1]))
        for got, want in zip(flow_coefficients(s[:-1], s[1:], 0.7), explicit, strict=True):
            assert torch.equal(got, want)
    close(flow_coefficients(1.0, 0.9, 0.7, guard=0.75).std, 0.7 * (0.1 / 0.25) ** 0.5, 1e-7)


@pytest.mark.parametrize("kind", ["flow", "dance", "cps", "ode"])
def test_no_noise_is_the_euler_step_bit_for_bit(kind):
    s = schedule(10, 3.0, torch.float32)
    level = 0.7 if kind == "ode" else 0.0
    made = flow_coefficients(s[:-1], s[1:], level, kind=kind)
    x, v = normal(6, 5).float(), normal(6, 5, seed=1).float()
    for k in range(10):
        euler = x + v * (s[k + 1] - s[k])
        step = gaussian_step(x, v, made.x[k], made.v[k], made.std[k])
        assert torch.equal(step.prev, euler) and torch.equal(step.mean, euler) and step.logp is None
        assert torch.equal(flow_sde_step(x, v, s[k], s[k + 1], level, kind=kind).prev, euler)
    assert not made.std.any()
    if kind != "ode":
        some = torch.where(torch.arange(10) % 2 == 0, 0.0, 0.5)
        mixed, noisy = (flow_coefficients(s[:-1], s[1:], a, kind=kind) for a in (some, 0.5))
        for got, calm, loud in zip(mixed, made, noisy, strict=True):
            assert torch.equal(got[::2], calm[::2]) and torch.equal(got[1::2], loud[1::2])


def test_a_calibrated_level_for_each_step_reproduces_flow_grpo_as_dance():
    s = schedule(10, 3.0)
    guarded = torch.where(s[:-1] < 1, s[:-1], s[1])
    psi = 0.7 * (s[:-1] / (1 - guarded)).sqrt()
    for got, want in zip(
        flow_coefficients(s[:-1], s[1:], psi, kind="dance"),
        flow_coefficients(s[:-1], s[1:], 0.7),
        strict=True,
    ):
        close(got, want, 1e-14)


@pytest.mark.parametrize(
    ("kind", "a", "variance"),
    [("ode", 0.0, 0.99743), ("dance", 0.3, 0.99761), ("flow", 0.7, 1.00572), ("cps", 0.7, 0.72289)],
)
def test_final_variance_of_unit_gaussian_data_under_its_exact_velocity(kind, a, variance):
    s = schedule(1000)
    made = flow_coefficients(s[:-1], s[1:], a, kind=kind)
    now = 1.0
    for k in range(1000):
        slope = (2 * s[k] - 1) / ((1 - s[k]) ** 2 + s[k] ** 2)  # of v in x
        now = float((made.x[k] + made.v[k] * slope) ** 2 * now + made.std[k] ** 2)
    assert now == pytest.approx(variance, abs=6e-6)


def test_results_are_float32_but_computed_in_float64():
    s = torch.tensor([0.999999, 0.5])
    made = flow_coefficients(s, torch.tensor([0.5, 0.25]), 0.7)
    exact = flow_coefficients(s.double(), f64(0.5, 0.25).reshape(2), 0.7)
    for got, want in zip(made, exact, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, want.float())
    x = normal(2, 3).to(torch.bfloat16)
    assert flow_sde_step(x, x, 0.5, 0.4, 0.7, noise=x).prev.dtype == torch.float32
    assert flow_coefficients(0.5, 0.4, 0.7).x.shape == ()
    assert flow_coefficients(s[:, None].expand(2, 3), s[:, None].expand(2, 3) / 2, 0.7).std.shape == (2, 3)


def test_a_step_of_no_length_stays_where_it_is_and_missing_stays_missing():
    for kind in ("flow", "dance", "cps", "ode"):
        made = flow_coefficients(f64(0.0, 1.0, NAN).reshape(3), f64(0.0, 1.0, 0.5).reshape(3), 0.7, kind=kind)
        assert made.x[:2].tolist() == [1, 1] and made.v[:2].tolist() == [0, 0]
        assert made.std[:2].tolist() == [0, 0]
        assert bool(made.v[2].isnan())


def test_unusable_coefficients_are_refused_in_words():
    with pytest.raises(ConfigError, match="did you mean 'dance'"):
        flow_coefficients(0.5, 0.4, 0.7, kind="dancee")
    with pytest.raises(DataError, match=r"steps go from noise to data.*sigma = 0.4, sigma_next = 0.5"):
        flow_coefficients(0.4, 0.5, 0.7)
    with pytest.raises(DataError, match=r"sigma must lie in \[0, 1\], got 999"):
        flow_coefficients(999.0, 0.5, 0.7)
    with pytest.raises(DataError, match=r"noise must lie in \[0, inf\], got -0.1"):
        flow_coefficients(0.5, 0.4, -0.1)
    with pytest.raises(DataError, match=r"noise must lie in \[0, 1\], got 1.5"):
        flow_coefficients(0.5, 0.4, 1.5, kind="cps")
    with pytest.raises(ConfigError, match="give sigmas"):
        flow_coefficients(0.5, 0.4, 0.7, guard=1.0)
    with pytest.raises(DataError, match=r"alpha_bar_next = 0\.25, alpha_bar = 0\.5"):
        ddim_coefficients(0.5, 0.25, 1.0)
    with pytest.raises(DataError, match="eta must lie"):
        ddim_coefficients(0.25, 0.5, 1.5)


# ---- DDIM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_the_formula_in_steps(eta):
    ab, nxt = torch.linspace(0.01, 0.9, 8).double(), torch.linspace(0.12, 0.99, 8).double()
    x, eps = normal(8), normal(8, seed=1)
    made = ddim_coefficients(ab, nxt, eta)
    for k in range(8):
        a, b = float(ab[k]), float(nxt[k])
        std = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x0 = (float(x[k]) - math.sqrt(1 - a) * float(eps[k])) / math.sqrt(a)
        mean = math.sqrt(b) * x0 + math.sqrt(1 - b - std**2) * float(eps[k])
        close(made.x[k] * x[k] + made.v[k] * eps[k], mean, 1e-12)
        close(made.std[k], std, 1e-12)


def test_ddim_with_eta_1_has_the_variance_of_the_ddpm_posterior_and_ends_without_noise():
    ab, nxt = f64(0.3).reshape(1), f64(0.6).reshape(1)
    alpha = 0.3 / 0.6
    close(ddim_coefficients(ab, nxt, 1.0).std, [math.sqrt((1 - 0.6) / (1 - 0.3) * (1 - alpha))], 1e-12)
    x, eps = normal(2, 3), normal(2, 3, seed=1)
    last = ddim_gaussian_step(x, eps, 0.3, 1.0, 1.0)
    close(last.prev, (x - 0.7**0.5 * eps) / 0.3**0.5, 1e-12)
    assert last.logp is None and ddim_gaussian_step(x, eps, 0.3, 0.6, 0.0).logp is None
    drawn = ddim_gaussian_step(x, eps, 0.3, 0.6, 1.0, noise=eps)
    again = ddim_gaussian_step(x, eps, 0.3, 0.6, 1.0, prev=drawn.prev)
    assert torch.equal(drawn.logp, again.logp)
    assert ddim_coefficients(0.6, 0.6, 1.0).std == 0


# ---- steps and log-probabilities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_log_probability_equals_that_of_normal_distributions(reduce):
    x, v, prev = normal(4, 2, 3), normal(4, 2, 3, seed=1), normal(4, 2, 3, seed=2)
    step = flow_sde_step(x, v, f64(0.9, 0.7, 0.5, 0.2).reshape(4), 0.1, 0.7, prev=prev, reduce=reduce)
    each = Normal(step.mean, step.std[:, None, None]).log_prob(prev)
    close(step.logp, getattr(each, reduce)((1, 2)), 1e-10)
    per_step = gaussian_logp(prev.reshape(1, 4, 6), step.mean.reshape(1, 4, 6), step.std[None], reduce=reduce)
    assert torch.equal(per_step[0], step.logp)


def test_scoring_what_was_sampled_gives_the_same_bits_so_the_ratio_is_exactly_1():
    x, v, z = (normal(16, 5, seed=k).float() for k in range(3))
    s = schedule(16, 3.0, torch.float32)
    made = flow_coefficients(s[:-1], s[1:], 0.7)
    drawn = gaussian_step(x, v, *made, noise=z)
    again = gaussian_step(x, v, *made, prev=drawn.prev)
    assert torch.equal(drawn.logp, again.logp) and torch.equal(drawn.mean, again.mean)
    rows = gaussian_logp(drawn.prev[None], again.mean[None], made.std[None])
    ratio = token_ratio(rows, drawn.logp[None], torch.ones(1, 16, dtype=torch.bool))
    assert ratio.tolist() == [[1.0] * 16]


def test_the_sampled_state_is_held_fixed_and_the_graph_goes_through_the_output():
    x, z = normal(3, 4), normal(3, 4, seed=1)
    v = normal(3, 4, seed=2).requires_grad_()
    step = flow_sde_step(x, v, 0.5, 0.4, 0.7, noise=z)
    grad = torch.autograd.grad(step.logp.sum(), v)[0]
    slope = (1 + 0.49 / 2) * -0.1  # of mean in v
    close(grad, z / step.std[:, None] * slope / 4, 1e-12)
    assert step.prev.requires_grad, "rewards with a gradient may go through the sample"


def test_rows_without_noise_among_others_have_log_probability_0_and_no_gradient():
    prev, mean = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    prev[0, 1], mean[1, 2] = NAN, math.inf
    mean = mean.requires_grad_()
    std = torch.ones(2, 3, dtype=torch.float64)
    std[0, 1] = std[1, 2] = 0
    logp = gaussian_logp(prev, mean, std)
    logp.sum().backward()
    assert logp[0, 1] == 0 and logp[1, 2] == 0 and logp.isfinite().all()
    assert mean.grad.isfinite().all() and not mean.grad[0, 1].any() and not mean.grad[1, 2].any()
    x = normal(2, 3)
    step = gaussian_step(x, x, 1.0, -0.1, f64(0.0, 0.5).reshape(2), noise=x)
    assert step.logp[0] == 0 and step.logp[1] != 0 and torch.equal(step.prev[0], step.mean[0])


def test_a_step_with_noise_is_never_drawn_without_being_given_noise():
    with pytest.raises(DataError, match="needs `noise`"):
        gaussian_step(ONE, HALF, 1.0, -0.1, 0.2)
    with pytest.raises(DataError, match="got prev and noise"):
        gaussian_step(ONE, HALF, 1.0, -0.1, 0.2, prev=ONE, noise=ONE)
    with pytest.raises(ConfigError, match="reduce must be one of"):
        gaussian_step(ONE, HALF, 1.0, -0.1, 0.2, prev=ONE, reduce="max")
    with pytest.raises(DataError, match="gaussian_step: noise must have the shape of x"):
        inspect.unwrap(gaussian_step)(ONE, HALF, 1.0, -0.1, 0.2, noise=torch.ones(1, 2))


def test_data_and_noise_of_one_straight_step():
    x0, e, s = normal(4, 3), normal(4, 3, seed=1), f64(0.1, 0.5, 0.9, 1.0).reshape(4)
    x = (1 - s[:, None]) * x0 + s[:, None] * e
    close(one_step_x0(x, e - x0, s), x0, 1e-12)
    close(one_step_noise(x, e - x0, s), e, 1e-12)
    assert torch.equal(one_step_x0(x, x0, 0.0), x) and torch.equal(one_step_noise(x, x0, 1.0), x)


# ---- weights of the steps ------------------------------------------------------------------------------------------


def std_of(steps, shift, a=0.7):
    s = schedule(steps, shift)
    return flow_coefficients(s[:-1], s[1:], a).std


@pytest.mark.parametrize(
    ("shift", "trained", "raw", "weight"),
    [
        (1.0, 4, [0.7, 0.606218, 0.35, 0.202073], [1.506761, 1.304894, 0.753381, 0.434965]),
        (3.0, 4, [0.7, 0.813327, 0.606218, 0.494975], [1.070943, 1.244323, 0.927464, 0.757271]),
        (1.0, 3, [0.7, 0.606218, 0.35, 0.202073], [1.267949, 1.098076, 0.633975, 0.0]),
    ],
)
def test_noise_aware_weights_of_the_sheet(shift, trained, raw, weight):
    std = std_of(4, shift)[None].expand(3, 4)
    close(std[0], raw)
    trainable = (torch.arange(4) < trained).expand(3, 4)
    got = noise_aware_weights(std, trainable)
    close(got, [weight] * 3)
    close(got.sum(1) / trained, [1.0] * 3, 1e-14)
    close(noise_aware_weights(std_of(4, shift, a=0.2)[None], trainable[:1]), got[:1], 1e-14)
    inverse = noise_aware_weights(std, trainable, inverse=True)
    close((inverse * got)[:, :trained], (inverse * got)[:1, :1].expand(3, trained), 1e-12)
    close(inverse.sum(1) / trained, [1.0] * 3, 1e-14)


@pytest.mark.parametrize(
    ("shift", "product"), [(1.0, [0.25, 0.31125, 0.31125, 0.31125]), (3.0, [0.1, 0.18675, 0.31125, 0.6225])]
)
def test_noise_times_the_scale_of_the_gradient_is_the_length_of_the_step(shift, product):
    s, e = schedule(4, shift), torch.ones(4, 1, dtype=torch.float64)
    v = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    step = flow_sde_step(e, v, s[:-1], s[1:], 0.7, noise=e)
    scale = torch.autograd.grad(step.logp.sum(), v)[0].abs().squeeze(1)
    close(step.std * scale, product, 1e-10)
    inner, dt = s[1:-1], s[1:-1] - s[2:]
    close(scale[1:], (1 + 0.245) / 0.7 * (dt * (1 - inner) / inner).sqrt(), 1e-10)


def test_weights_are_refused_where_they_mean_nothing():
    std, every = f64([0.7, 0.5, 0.0], [0.7, 0.5, 0.0]), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(DataError, match="no noise in any trainable step of row 1"):
        noise_aware_weights(std, torch.tensor([[True, True, True], [False, False, True]]), mixed=True)
    with pytest.raises(DataError, match="no noise in a trainable step of row 0"):
        noise_aware_weights(std, every, inverse=True)
    close(noise_aware_weights(std, every), [[1.75, 1.25, 0.0]] * 2, 1e-12)
    with pytest.raises(DataError, match="missing or below 0"):
        noise_aware_weights(std.masked_fill(std == 0, NAN), every)
    with pytest.raises(DataError, match="row 1 has another schedule"):
        noise_aware_weights(std * f64([1.0], [2.0]), every)
    with pytest.raises(DataError, match="row 1 has another schedule"):
        noise_aware_weights(std, torch.tensor([[True, True, False], [True, False, False]]))
    alone = noise_aware_weights(std * f64([1.0], [2.0]), every & (std > 0), mixed=True)
    close(alone, [[7 / 6, 5 / 6, 0.0]] * 2, 1e-12)
    nobody = noise_aware_weights(std, torch.tensor([[False] * 3, [True, True, False]]))
    close(nobody, [[0.0] * 3, [7 / 6, 5 / 6, 0.0]], 1e-12)


# ---- calibration ---------------------------------------------------------------------------------------------------


def gains_of(up, down, zero=0):
    return f64(*[[1.0]] * up, *[[-1.0]] * down, *[[0.0]] * zero)


@pytest.mark.parametrize(
    ("up", "down", "zero", "tolerance", "change"),
    [
        (4, 4, 0, 2, 0.01),
        (5, 3, 0, 2, -0.01),
        (5, 3, 0, 3, 0.01),
        (0, 8, 0, 2, -0.01),
        (0, 0, 8, 2, 0.01),
        (1, 0, 7, 2, 0.01),
        (5, 3, 0, 0.3, 0.01),  # a share: 2 < 2.4
        (5, 3, 0, 0.25, -0.01),
    ],
)
def test_one_round_of_calibration(up, down, zero, tolerance, change):
    got = calibrate_noise(f64(0.5).reshape(1), gains_of(up, down, zero), tolerance=tolerance)
    close(got, [0.5 + change], 1e-12)


def test_calibration_stays_between_floor_and_cap_and_treats_steps_alone():
    psi = f64(0.5, 0.5, 0.055).reshape(3)
    gains = torch.cat([gains_of(4, 4), gains_of(8, 0), gains_of(0, 8)], 1)
    close(calibrate_noise(psi, gains), [0.51, 0.49, 0.05], 1e-12)
    close(calibrate_noise(psi, gains, f64(0.505, 1.0, 0.01).reshape(3)), [0.505, 0.49, 0.01], 1e-12)
    for _ in range(100):
        psi = calibrate_noise(psi, -gains.abs(), rate=0.02)
    close(psi, [0.05] * 3, 1e-12)


def test_calibration_refuses_what_it_cannot_judge():
    psi = f64(0.5, 0.5).reshape(2)
    with pytest.raises(DataError, match="gain of trajectory 1 at step 0 is nan"):
        calibrate_noise(psi, f64([1.0, 1.0], [NAN, 1.0]))
    with pytest.raises(DataError, match="one entry for each of the 3 steps"):
        inspect.unwrap(calibrate_noise)(psi, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="tolerance must be above 0"):
        calibrate_noise(psi, torch.zeros(4, 2).double(), tolerance=0)


def test_balance_of_gains():
    gains = f64([1.0, -1.0, 0.0, NAN], [2.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 0.0, 1.0])
    close(gain_balance(gains), [2 / 3, 0.0, NAN, 1.0], 1e-12)
    valid = torch.tensor([[True] * 4, [True] * 4, [False] * 4])
    close(gain_balance(gains, valid), [1.0, 0.0, NAN, 1.0], 1e-12)


# ---- the guarded ratio ---------------------------------------------------------------------------------------------


def drifted(reduce="mean"):
    """Steps of different noise under a policy that has moved: log-probabilities, means and the noise drawn."""
    std, old = f64([0.7, 0.2, 0.05]).expand(2, 3), normal(2, 3, 8)
    e, moved = normal(2, 3, 8, seed=1), 0.01 * normal(2, 3, 8, seed=2)
    made = []
    for sign in (1, -1):
        prev = old + sign * std[..., None] * e
        new = gaussian_logp(prev, old + moved, std, reduce=reduce)
        made.append((new, gaussian_logp(prev, old, std, reduce=reduce), sign * e))
    return std, old, moved, made


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_guarded_ratio_is_the_noise_times_the_change_and_unbiased_where_the_plain_one_is_not(reduce):
    std, old, moved, made = drifted(reduce)
    mask, logs, plain = torch.ones(2, 3, dtype=torch.bool), [], []
    for new, before, e in made:
        log = guarded_ratio(new, before, mask, old + moved, old, std, reduce=reduce).log()
        close(log, getattr(e * moved, reduce)(-1), 1e-10)
        logs.append(log)
        plain.append(token_ratio(new, before, mask).log())
    close(sum(logs), torch.zeros(2, 3), 1e-10)  # e and -e: the mean over noise
    bias = -getattr(moved.square(), reduce)(-1) / std.square()
    close(sum(plain), bias, 1e-9)
    assert (bias < 0).all()


def test_guarded_ratio_is_1_before_the_first_update_and_reads_nothing_outside_the_mask():
    std, old, _, ((_, logp, _), _) = drifted()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean = old.masked_fill(~mask[..., None], NAN).requires_grad_()
    hidden = logp.masked_fill(~mask, NAN).requires_grad_()
    ratio = guarded_ratio(hidden, logp.masked_fill(~mask, math.inf), mask, mean, old, std)
    assert torch.equal(ratio, mask.double())
    ratio.sum().backward()
    close(hidden.grad, mask * std, 1e-12)
    assert mean.grad.isfinite().all()
    calm = guarded_ratio(logp, logp + 1, mask, old, old + 1, torch.zeros_like(std))
    assert torch.equal(calm, mask.double())
    far = guarded_ratio(logp + 1e6, logp, mask, old, old, std)
    assert far[0, 0].log().item() == pytest.approx(20)


# ---- divergence of steps -------------------------------------------------------------------------------------------


def test_divergence_of_gaussian_steps():
    mean, ref, std = normal(2, 3, 5), normal(2, 3, 5, seed=1), f64([0.7, 0.5, 0.2], [0.1, 0.3, 0.9])
    each = kl_divergence(Normal(mean, std[..., None]), Normal(ref, std[..., None]))
    close(gaussian_kl(mean, ref, std, exact=True), each.mean(-1), 1e-9)
    close(gaussian_kl(mean, ref, std, exact=True, reduce="sum"), each.sum(-1), 1e-9)
    s, nxt = f64([0.9, 0.7, 0.5], [0.9, 0.7, 0.5]), f64([0.7, 0.5, 0.1], [0.7, 0.5, 0.1])
    close(gaussian_kl(mean, ref, std, s, nxt), each.mean(-1) * (s - nxt), 1e-9)


def test_divergence_of_flow_steps_is_the_paper_s_in_velocities():
    s, a, x = schedule(10, 3.0)[1:-1], 0.7, normal(1, 8, 6)
    nxt = schedule(10, 3.0)[2:][None]
    made = flow_coefficients(s[None, :8], nxt[:, :8], a)
    v, ref = normal(1, 8, 6, seed=1), normal(1, 8, 6, seed=2)
    means = [made.x[..., None] * x + made.v[..., None] * out for out in (v, ref)]
    g, dt = a * (s / (1 - s)).sqrt()[:8], (s - nxt[0])[:8]
    paper = dt / 2 * (g * (1 - s[:8]) / (2 * s[:8]) + 1 / g).square() * (v - ref).square().mean(-1)
    close(gaussian_kl(*means, made.std, exact=True), paper, 1e-10)
    close(gaussian_kl(*means, made.std, s[None, :8], nxt[:, :8]), paper * dt, 1e-10)


def test_divergence_without_noise_without_move_and_without_schedule():
    mean = normal(1, 2, 3).requires_grad_()
    std = f64([0.5, 0.0])
    ref = mean.detach() + f64(0.1)
    ref[0, 1] = NAN
    kl = gaussian_kl(mean, ref, std, exact=True)
    assert kl[0, 1] == 0 and kl[0, 0].item() == pytest.approx(0.01 / 0.5)
    kl.sum().backward()
    assert mean.grad[0, 1].tolist() == [0.0] * 3
    close(mean.grad[0, 0], [-0.1 / 0.25 / 3] * 3, 1e-12)
    assert gaussian_kl(mean, mean.detach(), std, exact=True).tolist() == [[0.0, 0.0]]
    with pytest.raises(ConfigError, match="set exact=True"):
        gaussian_kl(mean, ref, std)
