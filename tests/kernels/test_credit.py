"""Scans, shaping, pooling and spreading over steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordant.core.errors import ConfigError, DataError
from concordant.kernels import (
    gae,
    increments,
    pool_segments,
    potential_shaping,
    spread,
    spread_segments,
    step_consistency,
    to_go,
)

NAN, INF = float("nan"), float("inf")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def all_steps(x):
    return torch.ones(x.shape, dtype=torch.bool)


def close(got, want, atol=1e-9):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol, equal_nan=True)


def slow_gae(rewards, values, mask, gamma, lam):
    """Backwards over masked steps, row by row."""
    advantage, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for i in range(rewards.shape[0]):
        ahead_a = ahead_v = 0.0
        for t in reversed(range(rewards.shape[1])):
            if mask[i, t]:
                delta = rewards[i, t] + gamma * ahead_v - values[i, t]
                ahead_a = delta + gamma * lam * ahead_a
                ahead_v = values[i, t]
                advantage[i, t], returns[i, t] = ahead_a, ahead_a + ahead_v
    return advantage, returns


def test_gae_by_hand():
    r, v = f64([0, 0, 1]), f64([0.5, 0.6, 0.7])
    out = gae(r, v, all_steps(r), lam=0.95)
    close(out.advantage, [[0.46575, 0.385, 0.3]])
    close(out.returns, [[0.96575, 0.985, 1.0]])


def test_gae_limits():
    r, v = torch.randn(3, 9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    m = all_steps(r)
    close(gae(r, torch.zeros_like(v), m).advantage, r.flip(1).cumsum(1).flip(1))
    ahead = torch.nn.functional.pad(v[:, 1:], (0, 1))
    close(gae(r, v, m, gamma=0.9, lam=0.0).advantage, r + 0.9 * ahead - v)
    close(gae(r, v, m, gamma=0.0, lam=0.7).advantage, r - v)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 4),
    steps=st.integers(0, 100),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    shape=st.sampled_from(["prefix", "late", "holes", "full"]),
)
def test_gae_and_to_go_against_a_loop(seed, rows, steps, gamma, lam, shape):
    gen = torch.Generator().manual_seed(seed)
    r, v = (torch.randn(rows, steps, generator=gen, dtype=torch.float64) for _ in range(2))
    place, length = torch.arange(steps), torch.randint(0, steps + 1, (rows, 1), generator=gen)
    mask = {
        "prefix": place < length,
        "late": place >= length,
        "full": (place >= 0) & (length >= 0),
        "holes": torch.rand(rows, steps, generator=gen) < 0.5,
    }[shape]
    out = gae(r.masked_fill(~mask, NAN), v.masked_fill(~mask, INF), mask, gamma=gamma, lam=lam)
    advantage, returns = slow_gae(r, v, mask, gamma, lam)
    close(out.advantage, advantage)
    close(out.returns, returns)
    close(to_go(r.masked_fill(~mask, NAN), mask, gamma=gamma), slow_gae(r, 0 * v, mask, gamma, 1.0)[0])


@pytest.mark.parametrize("steps", [1, 2, 31, 32, 33, 1024, 1025, 3000])
def test_scan_over_block_borders_in_float32(steps):
    gen = torch.Generator().manual_seed(steps)
    r, v = (torch.randn(2, steps, generator=gen) for _ in range(2))
    mask = all_steps(r)
    out = gae(r, v, mask, gamma=0.999, lam=0.99)
    advantage, returns = slow_gae(r.double(), v.double(), mask, 0.999, 0.99)
    assert out.advantage.dtype == torch.float32
    close(out.advantage.double(), advantage, atol=2e-4)
    close(out.returns.double(), returns, atol=2e-4)


def test_gae_degenerate_rows():
    r, v = f64([1, 1, 1], [1, NAN, 1], [1, 1, 1]), f64([0, 0, 0], [0, 0, 0], [0, 0, NAN])
    mask = torch.tensor([[False] * 3, [True] * 3, [True, True, False]])
    out = gae(r, v, mask)
    close(out.advantage, [[0, 0, 0], [NAN, NAN, 1], [2, 1, 0]])
    close(to_go(f64([1, NAN, 1, 1]), torch.tensor([[True, True, False, True]])), [[NAN, NAN, 0, 1]])
    with pytest.raises(DataError, match="gae: a masked step holds inf"):
        gae(f64([1, INF]), f64([0, 0]), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"gae: lam must lie in \[0, 1\], got 1.5"):
        gae(r, v, mask, lam=1.5)
    with pytest.raises(ConfigError, match="gamma"):
        to_go(r, mask, gamma=NAN)


def test_to_go_treats_a_row_column_as_one_step():
    close(to_go(f64(1, 2, 3), torch.tensor([True, False, True]), gamma=0.5), [1, 0, 3])
    close(increments(f64(1, 2, 3), torch.tensor([True, False, True])), [1, 0, 3])


def test_increments_step_over_holes_and_add_up():
    x, mask = f64([0.25, 9, 0.75, 0.5, 9]), torch.tensor([[True, False, True, True, False]])
    close(increments(x, mask), [[0.25, 0, 0.5, -0.25, 0]])
    close(increments(x, mask, first="zero"), [[0, 0, 0.5, -0.25, 0]])
    close(increments(f64([NAN, 1, 2]), torch.ones(1, 3, dtype=torch.bool)), [[NAN, NAN, 1]])
    with pytest.raises(ConfigError, match="first must be one of"):
        increments(x, mask, first="last")


def test_shaping_telescopes():
    x, mask = f64([0.3, 9, 0.5, 0.7, 9]), torch.tensor([[True, False, True, True, False]])
    close(potential_shaping(x, mask), [[0.2, 0, 0.2, -0.7, 0]])
    close(potential_shaping(x, mask, gamma=0.5, terminal=1.0), [[-0.05, 0, -0.15, -0.2, 0]])
    close(potential_shaping(x, mask, terminal=2.0).sum(1), [2.0 - 0.3])
    close(to_go(potential_shaping(x, mask, gamma=0.9), mask, gamma=0.9), torch.where(mask, -x, 0.0))


def test_spread():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    close(spread(f64(2, NAN), mask), [[2, 2, 0], [0, 0, 0]])
    assert spread(f64(NAN), torch.tensor([[True, False]])).isnan().tolist() == [[True, False]]
    segment = torch.tensor([[0, 0, 1, -1], [-1, 2, -1, 0]])
    close(spread_segments(f64([5, 7, NAN], [1, NAN, 3]), segment), [[5, 5, 7, 0], [0, 3, 0, 1]])
    with pytest.raises(DataError, match="segment holds 2, but x has 2 segments"):
        spread_segments(f64([1, 2], [3, 4]), segment)
    assert spread_segments(torch.zeros(1, 0), torch.full((1, 3), -1)).tolist() == [[0, 0, 0]]


def test_pooling():
    x = f64([0.5, 0.25, 9], [9, 9, 9], [NAN, 0.5, 0.1])
    turn = torch.tensor([[True, True, False], [False] * 3, [True, True, True]])
    want = {"mean": 0.375, "min": 0.25, "sum": 0.75, "prod": 0.125, "last": 0.25}
    for how, value in want.items():
        close(pool_segments(x, turn, how=how), [value, NAN, 0.1 if how == "last" else NAN])
    close(pool_segments(x, turn, empty=0.0), [0.375, 0.0, NAN])
    assert pool_segments(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).isnan().all()
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        pool_segments(x, turn, how="means")


def test_consistency_of_process_and_outcome():
    x = torch.tensor([[0.9, 0.7], [0.9, 0.7]], dtype=torch.float64)
    turn = torch.ones(2, 2, dtype=torch.bool)
    close(step_consistency(x, turn, f64(1, 0)), [0.6, -0.6])
    close(step_consistency(x, turn, f64(1, NAN)), [0.6, NAN])
    close(step_consistency(x, turn, f64(1, 0), centre=0.8), [0.0, 0.0])
    with pytest.raises(DataError, match=r"outcome must be 0 or 1 .* got 0.5"):
        step_consistency(x, turn, f64(1, 0.5))


@pytest.mark.parametrize(("steps", "penalty"), [(0, 10), (1, 10), (2, 0), (30, 0), (31, 10)])
def test_too_few_or_too_many_steps_are_penalised(steps, penalty):
    turn = (torch.arange(32) < steps)[None]
    close(step_consistency(torch.full((1, 32), 0.5, dtype=torch.float64), turn, f64(1)), [-penalty])
