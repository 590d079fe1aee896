"""Suites of checks: the numbers of VeRPO's sheet, a slow oracle, and every degenerate case."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordant.core.chain import chain, stage
from concordant.core.errors import ConfigError, DataError
from concordant.core.table import Table
from concordant.kernels import (
    decayed_outcome,
    density_calibrate,
    difficulty_weights,
    group_center,
    group_loo,
    pass_rates,
    weighted_partial_success,
    weighted_sum,
)

NAN = math.nan


def rows(*texts):
    """`rows("110", "1-0")`: one row of checks a text, `-` is missing."""
    return torch.tensor([[NAN if c == "-" else float(c) for c in text] for text in texts]).double()


def group_of(*sizes):
    return torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])


def weights_of(checks, group, a=2.0, s=0.1, d=0.0):
    rate = pass_rates(checks, group)
    return density_calibrate(difficulty_weights(rate, sharpness=a), rate, bandwidth=s, eps=d)


def rewards_of(checks, group, a=2.0, s=0.1, d=0.0):
    return weighted_partial_success(checks, weights_of(checks, group, a, s, d))


def close(got, want, atol=1e-12):
    torch.testing.assert_close(
        got, torch.as_tensor(want, dtype=got.dtype), atol=atol, rtol=0.0, equal_nan=True
    )


# ---- the exact properties of the sheet -----------------------------------------------------------------------------

FOUR = rows("1110", "1100", "1000", "1111")


def test_1_pass_rates_and_calibrated_weights_of_four_rows():
    group = group_of(4)
    close(pass_rates(FOUR, group)[2], [1.0, 0.75, 0.5, 0.25])
    close(weights_of(FOUR, group)[0], [0.129639, 0.205106, 0.338163, 0.581001], atol=1e-6)


def test_2_eight_easy_tests_weigh_together_less_than_the_hard_one():
    checks = rows("111111111", "111111110", "111111110", "000000000")
    weight = weights_of(checks, group_of(4))[0]
    close(weight[:8], [0.0278913] * 8, atol=5e-8)
    close(weight[:8].sum(), 0.2231301, atol=5e-8)
    close(weight[8], 0.6065126, atol=5e-8)
    plain = difficulty_weights(pass_rates(checks, group_of(4)))[0]
    close(plain[:8].sum(), 1.785, atol=5e-5)


@pytest.mark.parametrize("copies", [2, 5, 40])
def test_3_duplicating_a_test_changes_a_pass_rate_but_not_the_calibrated_reward(copies):
    group, twice = group_of(4), torch.cat([FOUR, FOUR[:, 1:2].expand(4, copies - 1)], 1)
    close(rewards_of(twice, group, s=1e-3), rewards_of(FOUR, group, s=1e-3))
    plain = {"a": 0.0, "s": math.inf}
    moved = rewards_of(twice, group, **plain) - rewards_of(FOUR, group, **plain)
    assert moved.abs().max() > 0.1


def test_4_a_wide_bandwidth_divides_by_the_size_and_no_sharpness_gives_the_pass_rate():
    group = group_of(4)
    for wide in (1e6, math.inf):
        close(weights_of(FOUR, group, s=wide), difficulty_weights(pass_rates(FOUR, group)) / 4, atol=1e-9)
        close(rewards_of(FOUR, group, a=0.0, s=wide), FOUR.mean(1), atol=1e-9)


def test_5_both_advantages_of_a_group_sum_to_zero_with_unequal_turns():
    checks = rows(
        "1100", "1111", "0000", "1000", "1110", "1111", "0100"
    )  # trajectories of 2, 1, 3 and 1 turns
    turns = torch.tensor([2, 2, 1, 3, 3, 3, 1])
    solved = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]).double()  # of the last turn, on every row
    group = group_of(7)
    close(group_center(rewards_of(checks, group), group).sum(), 0.0)
    share = 1.0 / turns.double()  # every trajectory counts once
    advantage = group_center(decayed_outcome(solved, turns, decay=0.9), group, weight=share)
    close((advantage * share).sum(), 0.0)
    each = torch.tensor([0.9**2, 0.0, 0.9**3, 0.0], dtype=torch.float64)
    close(advantage[[0, 2, 3, 6]], each - each.mean())


def test_5_a_group_that_passes_everything_is_silent():
    group, checks = group_of(5), torch.ones(5, 3).double()
    assert group_center(rewards_of(checks, group), group).tolist() == [0.0] * 5
    outcome = decayed_outcome(torch.ones(5).double(), torch.full((5,), 2))
    assert group_center(outcome, group).tolist() == [0.0] * 5


def test_6_a_group_that_fails_everything_is_silent_and_finite():
    group, checks = group_of(5), torch.zeros(5, 3).double()
    assert pass_rates(checks, group).tolist() == [[0.0] * 3] * 5
    assert rewards_of(checks, group).tolist() == [0.0] * 5
    assert group_center(rewards_of(checks, group), group).tolist() == [0.0] * 5


def test_7_a_shorter_solution_is_better():
    outcome = decayed_outcome(torch.ones(2).double(), torch.tensor([1, 3]), decay=0.9)
    close(group_center(outcome, group_of(2)), [0.0855, -0.0855])


def test_8_bad_input_is_refused_in_words():
    group = group_of(4)
    with pytest.raises(DataError, match=r"no check at all for the prompt of group 7, 9; give every prompt"):
        pass_rates(torch.zeros(3, 0), torch.tensor([9, 7, 7]))
    with pytest.raises(DataError, match=r"weighted_partial_success: .* no check at all"):
        weighted_partial_success(torch.zeros(3, 0), torch.zeros(3, 0))
    for kernel in (pass_rates, lambda x, _: weighted_partial_success(x, torch.ones_like(x))):
        with pytest.raises(DataError, match=r"checks must be 0 or 1 \(NaN = missing\), got 0.5"):
            kernel(FOUR * 0.5, group)
    with pytest.raises(DataError, match="must agree in the first 2 axes"):
        inspect.unwrap(weighted_partial_success)(FOUR, torch.ones(4, 3))
    for option in (-0.1, NAN):
        with pytest.raises(ConfigError, match="sharpness must lie in"):
            difficulty_weights(FOUR, sharpness=option)
    for option in (0.0, -1.0, NAN):
        with pytest.raises(ConfigError, match="bandwidth must be above 0"):
            density_calibrate(FOUR, FOUR, bandwidth=option)
    with pytest.raises(ConfigError, match="eps must lie in"):
        density_calibrate(FOUR, FOUR, eps=-1e-9)
    for option in (0.0, 1.01, NAN):
        with pytest.raises(ConfigError, match="decay must lie in"):
            decayed_outcome(FOUR[:, 0], decay=option)


def test_leave_one_out_is_the_mean_baseline_times_n_over_n_minus_1():
    group = group_of(4)
    x = rewards_of(FOUR, group)
    close(group_center(x, group), group_loo(x, group) * 3 / 4)


# ---- missing -------------------------------------------------------------------------------------------------------


def test_suites_of_different_size_in_one_batch_are_those_of_each_alone():
    small, large = rows("10", "11", "00"), rows("110", "101", "100", "000")
    padded = torch.cat([torch.nn.functional.pad(small, (0, 1), value=NAN), large])
    group = group_of(3, 4)
    both = rewards_of(padded, group)
    close(both[:3], rewards_of(small, group_of(3)))
    close(both[3:], rewards_of(large, group_of(4)))


def test_a_row_that_lacks_a_check_of_its_suite_is_missing_and_moves_nobody_elses_rate_of_it():
    checks = rows("11", "1-", "00")
    group = group_of(3)
    rate = pass_rates(checks, group)
    close(rate, [[2 / 3, 0.5]] * 3)
    reward = rewards_of(checks, group)
    assert reward.isnan().tolist() == [False, True, False]
    alone = rewards_of(rows("11", "00"), group_of(2), s=math.inf, a=0.0)
    close(rewards_of(checks, group, s=math.inf, a=0.0)[[0, 2]], alone)


def test_degenerate_table_through_the_binder():
    """Groups: one row; all missing; a dropped row; no group; padded suite."""
    checks = rows("10", "--", "--", "11", "01", "00", "1-", "0-")
    table = Table.of(
        {
            "tests": ("b u", checks),
            "group": ("b", torch.tensor([0, 1, 1, 2, 2, -1, 4, 4])),
            "keep": ("b", torch.tensor([True, True, True, True, False, True, True, True])),
        }
    )
    out = chain(
        rate=stage(pass_rates, checks="tests"),
        weight=stage(difficulty_weights, x="rate"),
        calibrated=stage(density_calibrate, x="weight", rate="rate", eps=0.0),
        partial=stage(weighted_partial_success, checks="tests", weight="calibrated"),
        centred=stage(group_center, x="partial"),
    ).run(table)
    none = [NAN, NAN]
    close(out["rate"], [[1.0, 0.0], none, none, [1.0, 1.0], none, none, [0.5, NAN], [0.5, NAN]])
    hard, half, easy = 1.0, math.exp(-1.0), math.exp(-2.0)
    close(out["partial"], [easy / (1 + math.exp(-50.0)), NAN, NAN, easy, NAN, NAN, half, 0.0])
    assert hard == float(out["weight"][0, 1])
    close(out["centred"], [0.0, NAN, NAN, 0.0, NAN, NAN, half / 2, -half / 2])


def test_missing_outcomes_and_turns():
    got = decayed_outcome(torch.tensor([NAN, 1.0, 1.0]), torch.tensor([1, -1, 0]), decay=0.5)
    close(got, [NAN, NAN, 1.0])
    close(decayed_outcome(torch.tensor([1.0, 0.0, NAN]), decay=0.5), [0.5, 0.0, NAN])


# ---- oracle --------------------------------------------------------------------------------------------------------


def slow(checks, group, a, s, d):
    """The sheet's steps 1 to 4 in loops, suites read off the group."""
    rewards = [NAN] * len(group)
    for name in set(group):
        members = [i for i, g in enumerate(group) if g == name]
        suite = [j for j in range(len(checks[0])) if any(not math.isnan(checks[i][j]) for i in members)]
        judged = {j: [checks[i][j] for i in members if not math.isnan(checks[i][j])] for j in suite}
        rho = {j: sum(judged[j]) / len(judged[j]) for j in suite}
        count = {j: sum(math.exp(-((rho[j] - rho[k]) ** 2) / (2 * s * s)) for k in suite) for j in suite}
        weight = {j: math.exp(-a * rho[j]) / (count[j] + d) for j in suite}
        for i in members:
            if suite and not all(math.isnan(checks[i][j]) for j in suite):
                rewards[i] = sum(weight[j] * checks[i][j] for j in suite)
    return rewards


@settings(max_examples=60, deadline=None)
@given(
    checks=st.integers(1, 7).flatmap(
        lambda u: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 1.0, NAN]), min_size=u, max_size=u), min_size=1
        )
    ),
    a=st.floats(0.0, 5.0),
    s=st.floats(0.05, 2.0),
    d=st.floats(0.0, 1.0),
    seed=st.integers(0, 999),
)
def test_chain_equals_the_loops_on_random_ragged_groups(checks, a, s, d, seed):
    group = torch.randint(0, 4, (len(checks),), generator=torch.Generator().manual_seed(seed))
    got = rewards_of(torch.tensor(checks).double(), group, a, s, d)
    close(got, slow(checks, group.tolist(), a, s, d), atol=1e-11)


def test_fusing_is_a_weighted_sum():
    pair = torch.stack([torch.tensor([0.5, -0.5]), torch.tensor([0.2, NAN])])
    close(weighted_sum(pair, weights=(1.0, 2.0)), [0.9, NAN], atol=1e-7)
