"""Group and batch statistics: numbers by hand, degenerate cases, slow oracles on ragged groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordant.core.errors import ConfigError, DataError
from concordant.kernels import (
    accurate_set,
    batch_zscore,
    group_center,
    group_loo,
    group_max,
    group_mean,
    group_minmax,
    group_rank,
    group_zscore,
    multiply_gate,
    no_positive_groups,
    selected_bonus,
    tied_groups,
    weighted_sum,
)

NAN, INF = float("nan"), float("inf")
DEVIATIONS = (group_zscore, group_center, group_loo, group_rank, group_minmax)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def one_group(n):
    return torch.full((n,), 3)


def close(got, want, atol=1e-9):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol, equal_nan=True)


# --- numbers by hand -------------------------------------------------------------------------------------------------


def test_one_right_of_four():
    x, g = f64(1, 0, 0, 0), one_group(4)
    close(group_zscore(x, g, eps=0.0), [1.5, -0.5, -0.5, -0.5])
    close(group_zscore(x, g, eps=0.0, ddof=0), [math.sqrt(3), *[-1 / math.sqrt(3)] * 3])
    close(group_center(x, g), [0.75, -0.25, -0.25, -0.25])
    close(group_loo(x, g), [1, -1 / 3, -1 / 3, -1 / 3])
    close(group_loo(x, g), group_center(x, g) * 4 / 3)


def test_epsilon_and_where_it_stands():
    x, g = f64(0, 0.001), one_group(2)
    close(group_zscore(x, g), [-0.6195, 0.6195], atol=5e-5)
    close(group_zscore(x, g, eps=0.0), [-math.sqrt(0.5), math.sqrt(0.5)])
    x = f64(1, 0, 0, 0)
    close(group_zscore(x, one_group(4), eps=1e-2, eps_at="var")[:1], [0.75 / math.sqrt(0.25 + 1e-2)])
    close(batch_zscore(x, eps=1e-2, eps_at="var")[:1], [0.75 / math.sqrt(0.25 + 1e-2)])


def test_batch_scale_divides_by_the_deviation_of_raw_values():
    x, g = f64(1, 0, 5, 5), torch.tensor([0, 0, 1, 1])
    std = x.std().item()
    close(group_zscore(x, g, scale="batch", eps=0.0), [0.5 / std, -0.5 / std, 0, 0])


def test_zscore_ignores_shift_and_scale_and_centre_scales():
    x, g = torch.rand(12, dtype=torch.float64), torch.arange(12) // 4
    close(group_zscore(7 * x - 3, g, eps=0.0), group_zscore(x, g, eps=0.0))
    close(group_center(7 * x - 3, g), 7 * group_center(x, g))
    close(group_loo(7 * x - 3, g), 7 * group_loo(x, g))


@pytest.mark.parametrize(
    ("first", "second", "size"), [((0, 0), (1, 0), 0.5), ((0, 0), (1, 1), 1.0), ((0, 1), (1, 1), 0.5)]
)
def test_gdpo_tells_apart_what_grpo_merges(first, second, size):
    signals, g = f64(first, second).T.contiguous(), one_group(2)
    z = torch.stack([group_zscore(x, g, eps=0.0) for x in signals])
    close(weighted_sum(z), [-size * math.sqrt(2), size * math.sqrt(2)])
    close(group_zscore(weighted_sum(signals), g, eps=0.0), [-math.sqrt(0.5), math.sqrt(0.5)])


def test_gdpo_whole_batch():
    s = f64(-math.sqrt(0.5), math.sqrt(0.5), -math.sqrt(2), math.sqrt(2))
    close(batch_zscore(s, eps=0.0), [-0.5477, 0.5477, -1.0954, 1.0954], atol=5e-5)


@pytest.mark.parametrize(
    ("a", "b", "gdpo", "grpo"),
    [
        ([1, 0, 0, 0], [1, 1, 1, 0], [2, 0, 0, -2], [1.2247, 0, 0, -1.2247]),
        ([1, 1, 1, 0], [0, 0, 1, 1], [-0.366, -0.366, 1.366, -0.634], [-0.5, -0.5, 1.5, -0.5]),
    ],
)
def test_gdpo_four_members(a, b, gdpo, grpo):
    x, g = f64(a, b), one_group(4)
    close(weighted_sum(torch.stack([group_zscore(r, g, eps=0.0) for r in x])), gdpo, atol=5e-4)
    close(group_zscore(weighted_sum(x), g, eps=0.0), grpo, atol=5e-5)


def test_gdpo_blind_spot_is_exactly_zero():
    x, g = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), one_group(2)
    total = weighted_sum(torch.stack([group_zscore(r, g) for r in x]))
    assert total.tolist() == [0.0, 0.0] and bool(tied_groups(total, g).all())


def test_token_weighted_whitening_moves_groups_without_signal_and_rollout_weighted_does_not():
    total = f64(1, -1, 0, 0)
    mask = torch.arange(5) < torch.tensor([5, 1, 2, 2])[:, None]
    assert batch_zscore(total)[2:].tolist() == [0.0, 0.0]
    tokens = batch_zscore(total[:, None] * mask, mask=mask)
    assert tokens[2, 0] == tokens[3, 1] and abs(tokens[2, 0]) > 0.3
    assert bool((tokens[~mask] == 0).all())


def test_prompt_level_zscore_counts_each_prompt_once():
    unit = torch.tensor([4, 4, 4, 7, 9, 9])
    close(batch_zscore(f64(1, 1, 1, 0.5, 0, 0), unit=unit, eps=0.0), [1, 1, 1, 0, -1, -1])
    even = batch_zscore(f64(1, 1, 0, 0), unit=torch.arange(4), eps=0.0)
    close(even, [0.8660, 0.8660, -0.8660, -0.8660], atol=5e-5)
    assert batch_zscore(f64(1, 1), unit=torch.tensor([4, 4])).tolist() == [0.0, 0.0]
    assert batch_zscore(f64(1, 1, 1), unit=torch.tensor([4, 4, 5])).tolist() == [0.0, 0.0, 0.0]


def test_unit_counts_an_episode_once():
    x, g, unit = f64(1, 1, 1, 0), one_group(4), torch.tensor([0, 0, 0, 1])
    close(group_zscore(x, g, unit=unit, eps=0.0), [*[math.sqrt(0.5)] * 3, -math.sqrt(0.5)])
    close(group_mean(x, g, unit=unit), [0.5] * 4)
    close(group_mean(f64(0, 1, 4, 9), g, unit=torch.tensor([0, 0, 1, -1])), [2.25, 2.25, 2.25, NAN])
    everyone_equal = group_zscore(torch.full((4,), 0.1), g, unit=unit)
    assert everyone_equal.tolist() == [0.0] * 4


def test_length_weighted_centre():
    close(group_center(f64(1, 0, 0), one_group(3), weight=f64(6, 1, 1)), [0.25, -0.75, -0.75])
    tied = group_center(torch.full((3,), 0.35), one_group(3), weight=torch.tensor([1.0, 2.0, 5.0]))
    assert tied.tolist() == [0.0] * 3
    with pytest.raises(DataError, match="weight must be at least 0"):
        group_center(f64(1, 0), one_group(2), weight=f64(1, -1))


def test_rank_minmax_mean_max():
    x, g = f64(10, 1, 1, 0, 5), torch.tensor([2, 2, 2, 2, 8])
    close(group_rank(x, g, centred=False), [1, 0.5, 0.5, 0, 0.5])
    close(group_rank(x, g), [0.5, 0, 0, -0.5, 0])
    close(group_minmax(x, g), [1, 0.1, 0.1, 0, 0])
    close(group_mean(x, g), [3, 3, 3, 3, 5])
    close(group_max(x, g), [10, 10, 10, 10, 5])


def test_care_bonus_by_hand():
    acc, p = f64(1, 1, 1, 0, 0, 0, 0, 0), f64(0.9, 0.6, 0.99, 0.99, 0.1, 0.2, 0.3, 0.4)
    g = one_group(8)
    chosen = accurate_set(acc, g)
    assert chosen.nonzero().squeeze(1).tolist() == [0, 1, 2]
    bonus = selected_bonus(p, acc, chosen, g)
    close(bonus, [0.5, 0, 0.5, 0, 0, 0, 0, 0])
    close(group_zscore(acc + bonus, g), [1.4140, 0.7070, 1.4140, *[-0.7070] * 5], atol=5e-5)
    close(group_zscore(acc, g), [*[1.2074] * 3, *[-0.7244] * 5], atol=5e-5)


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_care_everybody_confident_gets_the_bonus_and_no_signal(n, dtype):
    acc, p, g = torch.ones(n, dtype=dtype), torch.full((n,), 0.97, dtype=dtype), one_group(n)
    bonus = selected_bonus(p, acc, accurate_set(acc, g), g)
    assert bonus.tolist() == [0.5] * n
    assert group_zscore(acc + bonus, g).tolist() == [0.0] * n


def test_care_edges():
    g = one_group(3)
    nobody = accurate_set(f64(0, 0, 0.1), g)
    assert not nobody.any() and selected_bonus(f64(1, 1, 1), f64(0, 0, 0.1), nobody, g).tolist() == [0, 0, 0]
    assert not accurate_set(
        torch.tensor([0.1, 0.1]), one_group(2)
    ).any()  # 0.1 in float32 exceeds 0.1 in float64
    alone = torch.tensor([True, False, False])
    close(selected_bonus(f64(0.01, 0.9, 0.9), f64(0.6, 0, 0), alone, g), [0.3, 0, 0])
    p, acc, both = f64(0.5, 0.6), f64(1, 1), torch.tensor([True, True])
    won = [selected_bonus(p, acc, both, one_group(2), margin=m).gt(0).sum().item() for m in (0.0, 0.04, 0.06)]
    assert won == [1, 1, 2]


def test_sage_unresolved_and_gdpo_condition():
    x, g = f64(0, 0, 1, 1, 0, 1), torch.tensor([1, 1, 2, 2, 3, 3])
    assert no_positive_groups(x, g).tolist() == [True, True, False, False, False, False]
    assert tied_groups(x, g).tolist() == [True, True, True, True, False, False]
    close(multiply_gate(f64(1, 1, 0), f64(1, 0, 1)), [1, 0, 0])
    close(multiply_gate(f64(1, 1, 1), f64(1, 2, NAN), strict=True), [0, 1, NAN])


# --- degenerate cases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", DEVIATIONS)
@pytest.mark.parametrize("value", [0.35, 0.1, 1e-30, 1e30, -7.3])
def test_a_tie_is_exactly_zero(kernel, value):
    x = torch.full((7,), value)
    assert kernel(x, one_group(7)).tolist() == [0.0] * 7
    assert tied_groups(x, one_group(7)).all()
    assert batch_zscore(x).tolist() == [0.0] * 7
    assert group_mean(x, one_group(7)).tolist() == x.tolist()


def test_one_pass_float32_does_not_find_that_tie():
    x = torch.full((7,), 0.35)
    assert (x - x.mean()).abs().max() > 0 or x.std() > 0, "the reason for exact ties"


@pytest.mark.parametrize("kernel", [group_zscore, group_center, group_loo])
def test_singletons(kernel):
    x, g = f64(2, 1, 0), torch.tensor([0, 1, 1])
    assert kernel(x, g)[0] == 0.0
    assert kernel(x, g, singleton="raw")[0] == 2.0
    assert kernel(x, g, singleton="missing")[0].isnan()
    lone_survivor = kernel(f64(2, NAN, 5, 4), torch.tensor([0, 0, 1, 1]), singleton="raw")
    assert lone_survivor[0] == 2.0 and lone_survivor[1].isnan()


@pytest.mark.parametrize("kernel", [*DEVIATIONS, group_mean, group_max])
def test_missing_moves_nobody_and_stays_missing(kernel):
    x, g = f64(1, NAN, 0, 4, 2), torch.tensor([0, 0, 0, 1, 1])
    left = torch.tensor([0, 2, 3, 4])
    got = kernel(x, g)
    close(got[left], kernel(x[left], g[left]))
    assert got[1].isnan()
    nobody = kernel(f64(NAN, NAN), one_group(2))
    assert nobody.isnan().all()
    no_group = kernel(f64(1, 2, 3), torch.tensor([-1, 0, 0]))
    assert no_group[0].isnan() and not no_group[1:].isnan().any()
    assert kernel(f64(), torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("kernel", [*DEVIATIONS, group_mean, group_max, tied_groups, no_positive_groups])
def test_inf_is_refused_by_name_unless_not_judged(kernel):
    x = f64(1, INF, 0)
    with pytest.raises(DataError, match=rf"{kernel.__name__}: x holds inf .* write NaN"):
        kernel(x, one_group(3))
    kernel(x, one_group(3), torch.tensor([True, False, True]))
    with pytest.raises(DataError, match="batch_zscore: x holds inf"):
        batch_zscore(x)


def test_huge_and_tiny_values():
    g = one_group(3)
    close(group_zscore(f64(1e140, -1e140, 0), g, eps=0.0), [1, -1, 0])
    close(group_zscore(torch.tensor([3e38, -3e38, 0.0]), g, eps=0.0), [1, -1, 0], atol=1e-6)
    close(group_zscore(f64(1e9 + 1, 1e9, 1e9 - 1), g, eps=0.0), [1, 0, -1])
    with pytest.raises(DataError, match="beyond 1e\\+150"):
        group_zscore(f64(1e200, 0, 0), g)


def test_options_are_refused_with_a_hint():
    x, g = f64(1, 0), one_group(2)
    for options, hint in [
        ({"scale": "bach"}, "did you mean 'batch'"),
        ({"eps_at": "variance"}, "std"),
        ({"singleton": "none"}, "missing"),
        ({"ddof": 2}, r"\[0, 1\]"),
    ]:
        with pytest.raises(ConfigError, match=hint):
            group_zscore(x, g, **options)


def test_trailing_axes_are_separate_and_batch_pools():
    x = torch.rand(6, 4, dtype=torch.float64)
    g = torch.tensor([0, 0, 1, 1, 1, 5])
    for kernel in (*DEVIATIONS, group_mean, group_max):
        close(kernel(x, g), torch.stack([kernel(x[:, j], g) for j in range(4)], 1))
    columns = [group_zscore(x[:, j], g, scale="batch") for j in range(4)]
    close(group_zscore(x, g, scale="batch"), torch.stack(columns, 1))
    close(batch_zscore(x), batch_zscore(x.reshape(-1)).reshape(6, 4))


# --- oracles ---------------------------------------------------------------------------------------------------------


def slow(name, values):
    """One group, plain Python; values without missing ones."""
    n, mean = len(values), sum(values) / len(values)
    if max(values) == min(values):
        return [0.0] * n if name not in ("mean", "max") else [values[0]] * n
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return {
        "zscore": [(v - mean) / (std + 1e-4) for v in values],
        "center": [v - mean for v in values],
        "loo": [v - (sum(values) - v) / (n - 1) for v in values],
        "rank": [
            (sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2) / (n - 1) - 0.5
            for v in values
        ],
        "minmax": [(v - min(values)) / (max(values) - min(values)) for v in values],
        "mean": [mean] * n,
        "max": [max(values)] * n,
    }[name]


KERNELS = {
    "zscore": group_zscore,
    "center": group_center,
    "loo": group_loo,
    "rank": group_rank,
    "minmax": group_minmax,
    "mean": group_mean,
    "max": group_max,
}
ragged = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0.0, 1.0, 0.5, NAN]), st.floats(-100, 100)),
        st.sampled_from([-1, 0, 3, 10**15, 2**62, 17]),
    ),
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(rows=ragged)
def test_against_a_loop(rows):
    x = torch.tensor([r[0] for r in rows], dtype=torch.float64)
    g = torch.tensor([r[1] for r in rows], dtype=torch.long)
    for name, kernel in KERNELS.items():
        want = [NAN] * len(rows)
        for group in set(g.tolist()) - {-1}:
            members = [i for i in range(len(rows)) if rows[i][1] == group and not math.isnan(rows[i][0])]
            for i, v in zip(
                members, slow(name, [rows[i][0] for i in members]) if members else [], strict=True
            ):
                want[i] = v
        close(kernel(x, g), want, atol=1e-7)


@pytest.mark.parametrize("ids", ["dense", "sorted", "shuffled", "huge"])
def test_every_way_of_numbering_groups_gives_the_same(ids):
    x = torch.rand(400, dtype=torch.float64)
    g = torch.arange(400) // 7
    named = {
        "dense": g,
        "sorted": g * 10**12,
        "shuffled": g[torch.randperm(400)],
        "huge": 2**62 - g * 10**15,
    }[ids]
    slow_way = torch.empty_like(x)
    for group in named.unique():
        m = named == group
        slow_way[m] = (x[m] - x[m].mean()) / (x[m].std() + 1e-4) if m.sum() > 1 else 0.0
    close(group_zscore(x, named), slow_way)
