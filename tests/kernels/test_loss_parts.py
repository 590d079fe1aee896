"""Ratio, term, aggregation, divergence: values, gradients, padding."""

import pytest
import torch

from concordant.core.errors import ConfigError
from concordant.kernels import (
    cispo_term,
    clip_term,
    dual_clip_term,
    fixed_length,
    kl_k1,
    kl_k2,
    kl_k3,
    on_policy_ratio,
    plain_term,
    rollout_mean,
    rollout_sum,
    sequence_ratio,
    span_likelihood,
    token_mean,
    token_ratio,
    whole_sequence_ratio,
)

NAN = float("nan")
MASK = torch.tensor([[True, True, True], [True, False, False]])
RATIOS = (token_ratio, sequence_ratio, whole_sequence_ratio)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, want, atol=1e-6):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol, equal_nan=True)


def test_ratios_by_hand():
    logp, old = f64([0.1, -0.05, 0.2], [0.3, 9, 9]), torch.zeros(2, 3, dtype=torch.float64)
    close(token_ratio(logp, old, MASK), [[1.105171, 0.951229, 1.221403], [1.349859, 0, 0]])
    close(sequence_ratio(logp, old, MASK), [[1.086904] * 3, [1.349859, 0, 0]])
    close(whole_sequence_ratio(logp, old, MASK), [[1.284025] * 3, [1.349859, 0, 0]])
    close(on_policy_ratio(logp), torch.ones(2, 3))


@pytest.mark.parametrize("ratio", RATIOS)
def test_padding_leaks_neither_value_nor_gradient(ratio):
    logp = f64([0.1, -0.05, 0.2], [0.3, NAN, float("inf")]).requires_grad_()
    old = f64([0, 0, 0], [0, NAN, float("-inf")])
    value = ratio(logp, old, MASK)
    value.sum().backward()
    assert value[~MASK].tolist() == [0, 0] and logp.grad[~MASK].tolist() == [0, 0]
    assert value.isfinite().all() and logp.grad.isfinite().all()
    nobody = ratio(logp, old, torch.zeros_like(MASK))
    assert nobody.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratio_is_one_before_the_first_update_and_its_gradient_is_reinforce(ratio):
    logp = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    advantage = f64([1.5] * 3, [-0.5] * 3)
    value = ratio(logp, logp.detach(), MASK)
    assert value[MASK].tolist() == [1.0] * 4
    weight = rollout_mean(MASK).double()
    for term in (clip_term, dual_clip_term, plain_term):
        grad = torch.autograd.grad((weight * term(value, advantage)).sum(), logp, retain_graph=True)[0]
        each_token = weight * advantage
        if ratio is whole_sequence_ratio:  # every token of a row moves the ratio of all of them
            each_token = torch.where(MASK, each_token.sum(1, keepdim=True), 0.0)
        close(grad, -each_token)


def test_limits_of_the_log_ratio():
    logp, old, one = f64([50.0]), f64([0.0]), torch.ones(1, 1, dtype=torch.bool)
    logp, old = logp.reshape(1, 1), old.reshape(1, 1)
    assert token_ratio(logp, old, one).log().item() == pytest.approx(20)
    assert sequence_ratio(logp, old, one).log().item() == pytest.approx(10)
    for ratio in RATIOS:
        assert ratio(logp, old, one, limit=None).log().item() == pytest.approx(50)
    assert whole_sequence_ratio(logp, old, one, limit=5.0).log().item() == pytest.approx(5)


@pytest.mark.parametrize(
    ("term", "rho", "a", "loss", "slope"),
    [
        (clip_term, 1.5, 2.0, -2.4, 0.0),
        (clip_term, 1.5, -1.0, 1.5, 1.0),
        (clip_term, 0.5, -1.0, 0.8, 0.0),
        (clip_term, 0.5, 1.0, -0.5, -1.0),
        (clip_term, 5.0, -1.0, 5.0, 1.0),
        (dual_clip_term, 5.0, -1.0, 3.0, 0.0),
        (dual_clip_term, 1.5, -1.0, 1.5, 1.0),
        (dual_clip_term, 1.5, 2.0, -2.4, 0.0),
        (plain_term, 5.0, 2.0, -10.0, -2.0),
    ],
)
def test_terms(term, rho, a, loss, slope):
    ratio = f64([rho]).requires_grad_()
    value = term(ratio, f64([a]))
    assert value.item() == pytest.approx(loss)
    assert torch.autograd.grad(value.sum(), ratio)[0].item() == pytest.approx(slope)


@pytest.mark.parametrize(("rho", "a"), [(1.5, 2.0), (1.5, -1.0), (5.0, -1.0), (0.1, 1.0)])
def test_cispo_never_loses_its_gradient(rho, a):
    logp = f64([-2.0]).requires_grad_()
    value = cispo_term(f64([rho]), logp, f64([a]), low=0.2, high=0.2)
    weight = min(max(rho, 0.8), 1.2)
    assert torch.autograd.grad(value.sum(), logp)[0].item() == pytest.approx(-weight * a)
    assert cispo_term(f64([rho]), logp, f64([a]), high=None).item() == pytest.approx(2 * rho * a)


def test_ceiling_and_refusals():
    ratio, a = f64([5.0]), f64([-1.0])
    assert clip_term(ratio, a, ceiling=2.0).item() == pytest.approx(2.0)
    for wrong in ({"low": 1.5}, {"low": -0.1}, {"high": -0.1}):
        with pytest.raises(ConfigError, match="distance"):
            clip_term(ratio, a, **wrong)
    with pytest.raises(ConfigError, match="bound must exceed 1"):
        dual_clip_term(ratio, a, bound=1.0)
    with pytest.raises(ConfigError, match="at least 1 token"):
        fixed_length(MASK, length=0)


def test_aggregations_by_hand():
    loss = torch.tensor([[1.0, 1.0, 9.0, 9.0], [2.0, 2.0, 2.0, 2.0]])
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    for weights, want in [
        (token_mean(mask), 10 / 6),
        (rollout_sum(mask), 5.0),
        (rollout_mean(mask), 1.5),
        (fixed_length(mask, length=8), 0.625),
    ]:
        assert (weights * loss).sum().item() == pytest.approx(want)


@pytest.mark.parametrize(
    "aggregate", [token_mean, rollout_sum, rollout_mean, lambda m, c=None: fixed_length(m, c, length=5)]
)
def test_rows_that_do_not_count(aggregate):
    mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3, [True, False, False]])
    left = torch.tensor([True, False, True, False])
    weights = aggregate(mask, torch.tensor([True, True, True, False]))
    assert torch.equal(weights[left], aggregate(mask[left])) and not weights[~left].any()
    assert torch.equal(aggregate(mask)[[0, 2, 3]], aggregate(mask[[0, 2, 3]])), (
        "an all-masked row is not counted"
    )
    assert not aggregate(torch.zeros(2, 3, dtype=torch.bool)).any()
    assert aggregate(mask[:0]).shape == (0, 3)


def test_weights_make_micro_batches_exact():
    loss, mask = torch.randn(6, 5), torch.rand(6, 5) < 0.6
    for weights in (token_mean(mask), rollout_mean(mask)):
        parts = sum((weights[i : i + 2] * loss[i : i + 2]).sum() for i in (0, 2, 4))
        close(parts, (weights * loss).sum().item())


def test_divergences_by_hand():
    p, q = f64([0.4, 0.6]), f64([0.5, 0.5])
    lp, lq = p.log()[None, 0], q.log()[None, 0]
    expected = [(p * kl(lp.reshape(1, 2), lq.reshape(1, 2))).sum().item() for kl in (kl_k1, kl_k2, kl_k3)]
    assert expected == pytest.approx([0.0201355, 0.0199310, 0.0201355], abs=1e-7)
    one, half = f64([0.4]).log().reshape(1, 1), f64([0.5]).log().reshape(1, 1)
    assert [kl(one, half).item() for kl in (kl_k1, kl_k2, kl_k3)] == pytest.approx(
        [-0.22314, 0.024897, 0.026856], abs=5e-6
    )


def test_divergence_limits_and_gradients():
    logp = f64([-30.0]).reshape(1, 1).requires_grad_()
    ref = torch.zeros(1, 1, dtype=torch.float64)
    assert kl_k3(logp, ref, limit=20.0, bound=10.0).item() == 10
    assert kl_k3(logp, ref, limit=20.0).item() == pytest.approx(
        torch.tensor(20.0).exp().item() - 21, rel=1e-6
    )
    assert torch.autograd.grad(kl_k3(logp, ref, limit=20.0).sum(), logp)[0].item() == 0
    near = f64([-1.0]).reshape(1, 1).requires_grad_()
    grads = [torch.autograd.grad(kl(near, ref - 0.5).sum(), near)[0].item() for kl in (kl_k1, kl_k2, kl_k3)]
    assert grads == pytest.approx([1.0, -0.5, 1 - torch.tensor(0.5, dtype=torch.float64).exp().item()])


def test_span_likelihood():
    logp = f64([0.9, 0.9, 0.1], [0.81, 0.5, 0.5], [0.9, 0.9, 0.9]).log()
    span = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    close(span_likelihood(logp, span), [0.9, 0.81, 0])
    close(span_likelihood(logp, span, reduce="product"), [0.81, 0.81, 0])
    mean = span_likelihood(logp, span, reduce="mean_logp", empty=NAN)
    close(mean, [f64(0.9).log().item(), f64(0.81).log().item(), NAN])
    close(span_likelihood(logp, span, cap=0.85), [0.85, 0.81, 0])
    hidden = logp.clone()
    hidden[0, 2] = NAN
    close(span_likelihood(hidden, span), [0.9, 0.81, 0])
    hidden[0, 1] = NAN
    close(span_likelihood(hidden, span), [NAN, 0.81, 0])
    with pytest.raises(ConfigError, match="did you mean 'product'"):
        span_likelihood(logp, span, reduce="prod")
