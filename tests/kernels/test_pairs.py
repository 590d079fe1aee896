"""Pairs, win rates and their losses: the properties of the sheets, slow oracles, what is missing, the binder."""

import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordant.core.chain import Context, chain, keep, stage
from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels import (
    best_worst_pairs,
    compare_values,
    diffusion_dpo_margin,
    dpo_loss,
    group_zscore,
    illusory_advantage,
    negate,
    pair_gaps,
    random_pairs,
    reward_difference_loss,
    same_group_pairs,
    win_rate,
)

NAN = math.nan


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, want, atol=1e-12):
    torch.testing.assert_close(
        got, torch.as_tensor(want, dtype=got.dtype), atol=atol, rtol=0.0, equal_nan=True
    )


def listed(pairs):
    return list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


def rates(x, group=None, margin=0.0):
    """Win rates of values compared inside their groups."""
    group = torch.zeros(len(x), dtype=torch.long) if group is None else group
    pairs = same_group_pairs(group)
    return win_rate(compare_values(x, *pairs, margin=margin), *pairs, group)


def advantages(x, ddof=1):
    return group_zscore(x, torch.zeros(len(x), dtype=torch.long), eps=0.0, ddof=ddof)


groups = st.lists(st.integers(-1, 3), max_size=14).map(lambda g: torch.tensor(g, dtype=torch.long))


# ---- which pairs there are -----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(group=groups, seed=st.integers(0, 99))
def test_pairs_equal_the_loops_on_random_ragged_groups(group, seed):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(len(group), generator=generator) < 0.7
    names = group.tolist()
    for chosen in (None, valid):
        rows = [i for i, g in enumerate(names) if g >= 0 and (chosen is None or bool(chosen[i]))]
        for mode, orders in (("all", combinations), ("both", permutations)):
            want = [(i, j) for i, j in orders(rows, 2) if names[i] == names[j]]
            assert listed(same_group_pairs(group, chosen, mode=mode)) == want
    x = torch.randint(0, 4, (len(group),), generator=generator).double()
    want = []
    for g in {names[i] for i in range(len(names)) if names[i] >= 0 and bool(valid[i])}:
        rows = [i for i, name in enumerate(names) if name == g and bool(valid[i])]
        best, worst = max(rows, key=lambda i: float(x[i])), min(rows, key=lambda i: float(x[i]))
        if x[best] > x[worst]:
            want.append((best, worst))
    assert listed(best_worst_pairs(x, group, valid)) == sorted(want)


def test_the_number_of_pairs_of_a_group_of_8_is_28_and_of_one_is_none():
    assert len(same_group_pairs(torch.zeros(8).long()).left) == 28
    assert len(same_group_pairs(torch.arange(8)).left) == 0
    assert len(same_group_pairs(torch.zeros(0).long(), mode="both").left) == 0
    assert len(same_group_pairs(torch.full((8,), -1)).left) == 0
    with pytest.raises(ConfigError, match="mode must be one of"):
        same_group_pairs(torch.zeros(8).long(), mode="random")


def test_best_and_worst_without_a_difference_or_a_value():
    x, group = f64(1.0, 1.0, 2.0, NAN, 3.0, NAN), torch.tensor([0, 0, 1, 1, 2, -1])
    assert listed(best_worst_pairs(x, group)) == []
    assert listed(best_worst_pairs(f64(1.0, 3.0, NAN, 3.0, 1.0), torch.zeros(5).long())) == [(1, 0)]


def test_random_pairs_are_pairs_of_the_group_at_most_so_many_and_all_are_equally_likely():
    group = torch.tensor([0, 0, 0, 0, 5, 5, 7, -1])
    possible = set(listed(same_group_pairs(group, mode="both")))
    hits = torch.zeros(8, 8)
    for step in range(600):
        drawn = listed(random_pairs(group, torch.arange(8) + 10, Rng(step=step), count=2))
        assert len(drawn) == 3 and set(drawn) <= possible and drawn == sorted(drawn)
        assert len({frozenset(pair) for pair in drawn}) == 3, "no pair twice"
        for left, right in drawn:
            hits[left, right] += 1
    inside = hits[:4, :4][~torch.eye(4, dtype=torch.bool)]
    assert inside.sum() == 1200
    assert ((inside - 1200 / 12).abs() < 50).all(), "five standard deviations"
    assert abs(float(hits[4, 5]) - 300) < 62
    with pytest.raises(ConfigError, match="count must lie in"):
        random_pairs(group, torch.arange(8), Rng(), count=0)


def test_random_pairs_follow_ids_and_not_positions():
    group, id = torch.tensor([0, 0, 0, 0, 5, 5, 5]), torch.tensor([17, 4, 99, 23, 8, 15, 16])
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])

    def named(rows):
        drawn = random_pairs(group[rows], id[rows], Rng(seed=4), count=2)
        return sorted((int(id[rows][a]), int(id[rows][b])) for a, b in listed(drawn))

    assert named(order) == named(torch.arange(7))


# ---- win rates: the properties of the sheet ------------------------------------------------------------------------


def test_1_three_images_in_order():
    w = rates(f64(3.0, 2.0, 1.0))
    close(w, [1.0, 0.5, 0.0])
    close(advantages(w), [1.0, 0.0, -1.0])
    close(advantages(w, ddof=0), [1.224745, 0.0, -1.224745], 1e-6)


def test_2_win_rates_sum_to_half_the_group_and_a_cycle_and_ties_are_silent():
    for size in range(2, 9):
        x = torch.randint(0, 4, (size,), generator=torch.Generator().manual_seed(size)).double()
        close(rates(x).sum(), size / 2)
    pairs = same_group_pairs(torch.zeros(3).long())  # (0, 1), (0, 2), (1, 2)
    cycle = win_rate(f64(1.0, 0.0, 1.0), *pairs, torch.zeros(3).long())
    for w in (cycle, rates(f64(2.0, 2.0, 2.0))):
        assert w.tolist() == [0.5] * 3 and advantages(w).tolist() == [0.0] * 3


def test_3_illusion_of_tiny_differences_ends_with_a_margin_and_not_before():
    near, far = f64(0.851, 0.852, 0.853), f64(1.0, 5.0, 9.0)
    for x in (near, far):
        close(advantages(x), [-1.0, 0.0, 1.0])
        assert rates(x).tolist() == [0.0, 0.5, 1.0]
    silent = rates(near, margin=0.01)
    assert silent.tolist() == [0.5] * 3 and advantages(silent).tolist() == [0.0] * 3
    assert rates(far, margin=0.01).tolist() == [0.0, 0.5, 1.0]
    for grow in (torch.exp, lambda x: x**3, lambda x: 5 * x - 7):
        assert torch.equal(rates(grow(far)), rates(far))


def test_4_a_judge_that_prefers_the_first_shown_is_cured_by_both_orders_only():
    group = torch.zeros(3).long()
    once, both = same_group_pairs(group), same_group_pairs(group, mode="both")
    first = win_rate(torch.ones(3).double(), *once, group)
    assert first.tolist() == [1.0, 0.5, 0.0], "image order decides"
    assert win_rate(torch.ones(6).double(), *both, group).tolist() == [0.5] * 3
    mean = torch.stack(
        [
            win_rate(
                torch.ones(3).double(), *random_pairs(group, torch.arange(3), Rng(step=k), count=3), group
            )
            for k in range(300)
        ]
    )
    assert len(mean.unique(dim=0)) > 1, "a single order is not fair"
    close(mean.mean(0), [0.5] * 3, atol=0.1)  # five standard deviations of .35 / sqrt(300)


def test_7_rounding_for_parity_is_an_option():
    group = torch.zeros(4).long()
    outcome, pairs = f64(1.0, 1.0, 0.0, 0.5, 0.5, 0.5), same_group_pairs(group)
    close(win_rate(outcome, *pairs, group), [2 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert win_rate(outcome, *pairs, group, decimals=3).tolist() == [0.667, 0.333, 0.333, 0.667]


# ---- win rates: oracle and degenerate cases ------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(group=groups, seed=st.integers(0, 99), margin=st.sampled_from([0.0, 0.5, 1.0]))
def test_win_rates_equal_the_loops_on_random_ragged_groups(group, seed, margin):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 5, (len(group),), generator=generator).double() / 2
    x = x.masked_fill(torch.rand(len(group), generator=generator) < 0.2, NAN)
    pairs = same_group_pairs(group)
    outcome = compare_values(x, *pairs, margin=margin)
    wins, asked = [0.0] * len(group), [0] * len(group)
    for (i, j), got, gap in zip(listed(pairs), outcome.tolist(), pair_gaps(x, *pairs).tolist(), strict=True):
        want = float(x[i] - x[j])
        assert gap == want or (math.isnan(gap) and math.isnan(want))
        if math.isnan(want):
            assert math.isnan(got)
            continue
        share = 0.5 if abs(want) <= margin else float(want > 0)
        assert got == share
        wins[i], wins[j] = wins[i] + share, wins[j] + 1 - share
        asked[i], asked[j] = asked[i] + 1, asked[j] + 1
    want = [w / n if n else NAN for w, n in zip(wins, asked, strict=True)]
    close(win_rate(outcome, *pairs, group), want)


def test_a_row_that_was_never_compared_is_missing_and_missing_outcomes_do_not_count():
    group, pairs = torch.tensor([0, 0, 0, 1]), same_group_pairs(torch.tensor([0, 0, 0, 1]))
    assert win_rate(f64(1.0, NAN, 1.0), *pairs, group).tolist()[:3] == [1.0, 0.5, 0.0]
    close(win_rate(f64(NAN, NAN, 1.0), *pairs, group), [NAN, 1.0, 0.0, NAN])
    valid = torch.tensor([True, False, False])
    close(win_rate(f64(1.0, 1.0, 1.0), *pairs, group, valid), [1.0, 0.0, NAN, NAN])
    ends = torch.tensor([0, -1]), torch.tensor([1, 2])
    close(win_rate(f64(1.0, 1.0), *ends, group), [1.0, 0.0, NAN, NAN])
    x = f64(3.0, 1.0, 2.0, 4.0)
    close(pair_gaps(x, *ends), [2.0, NAN])
    close(compare_values(x, *ends), [1.0, NAN])


def test_pairs_of_another_table_are_refused():
    group, ends = torch.tensor([0, 0, 1]), (torch.tensor([0, 1]), torch.tensor([1, 2]))
    with pytest.raises(DataError, match="rows 1 and 2 are paired but are of groups 0 and 1"):
        win_rate(f64(1.0, 1.0), *ends, group)
    with pytest.raises(DataError, match="rows 1 and 1 are paired"):
        win_rate(f64(1.0), torch.tensor([1]), torch.tensor([1]), group)
    with pytest.raises(DataError, match="right points at row 2 of 2 rows"):
        pair_gaps(f64(1.0, 1.0), *ends)
    with pytest.raises(DataError, match="share won by the left row"):
        win_rate(f64(7.0), torch.tensor([0]), torch.tensor([1]), group)
    with pytest.raises(ConfigError, match="margin must lie in"):
        compare_values(f64(1.0, 1.0, 1.0), *ends, margin=-0.1)


def test_report_of_illusory_advantages():
    x = f64(0.851, 0.852, 0.853, 1.0, 5.0, 9.0, 2.0, 2.0, NAN, 7.0)
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    report = illusory_advantage(x, group, floor=0.01)
    close(report.std, [0.001] * 3 + [4.0] * 3 + [0.0, 0.0, NAN, 0.0], 1e-12)
    close(report.range, [0.002] * 3 + [8.0] * 3 + [0.0, 0.0, NAN, 0.0], 1e-12)
    close(report.amplification, [1000.0] * 3 + [0.25] * 3 + [NAN] * 4, 1e-8)
    assert report.below_floor.tolist() == [True] * 3 + [False] * 3 + [True, True, False, True]
    assert not illusory_advantage(x, group).below_floor.any()


# ---- through the binder --------------------------------------------------------------------------------------------

WINS = chain(
    pairs=stage(same_group_pairs),
    outcome=stage(compare_values, x="reward", left="pairs.left", right="pairs.right"),
    win=stage(win_rate, outcome="outcome", left="pairs.left", right="pairs.right"),
    z=stage(group_zscore, x="win", eps=0.0),
)


def table(reward, group, keep_rows=None):
    rows = len(reward)
    kept = torch.ones(rows, dtype=torch.bool) if keep_rows is None else torch.tensor(keep_rows)
    return Table.of({"reward": ("b", f64(*reward)), "group": ("b", torch.tensor(group)), "keep": ("b", kept)})


def test_a_chain_makes_pairs_and_gives_each_row_its_win_rate():
    made = WINS.run(table([3.0, 1.0, 2.0, 5.0, 4.0, 1.0], [0, 0, 0, 1, 1, 9]))
    assert made.axes("pairs.left") == made.axes("outcome") == ("p",)
    close(made["win"], [1.0, 0.0, 0.5, 1.0, 0.0, NAN])
    close(made["z"], [1.0, -1.0, 0.0, 0.5**0.5, -(0.5**0.5), NAN])


def test_a_row_that_is_out_or_missing_moves_nobody_but_its_own_comparisons():
    reward, group = [3.0, NAN, 2.0, 5.0, 4.0, 1.0, 7.0], [0, 0, 0, 1, 1, 1, -1]
    kept = [True, True, True, True, False, True, True]
    made = WINS.run(table(reward, group, kept))
    close(made["win"], [1.0, NAN, 0.0, 1.0, NAN, 0.0, NAN])
    left_out = WINS.run(table(reward, group, kept).take(torch.tensor(kept)))
    assert torch.equal(made["win"][torch.tensor(kept)].nan_to_num(9), left_out["win"].nan_to_num(9))


def test_a_row_dropped_after_pairing_loses_its_pairs():
    late = chain(
        pairs=stage(same_group_pairs),
        outcome=stage(compare_values, x="reward", left="pairs.left", right="pairs.right"),
        good=keep(negate, x="bad"),
        win=stage(win_rate, outcome="outcome", left="pairs.left", right="pairs.right"),
    )
    t = table([3.0, 1.0, 2.0], [0, 0, 0]).with_columns({"bad": ("b", torch.tensor([False, True, False]))})
    close(late.run(t)["win"], [1.0, NAN, 0.0])


def test_random_pairs_in_a_chain_take_the_stream_of_their_stage():
    drawn = chain(pairs=stage(random_pairs, count=1))
    t = table([1.0] * 4, [0, 0, 0, 0]).with_columns({"id": ("b", torch.tensor([3, 1, 4, 2]))})
    seen = {listed_of(drawn.run(t, Context(Rng(seed)))) for seed in range(40)}
    assert len(seen) > 6, "both orders of several pairs"
    assert (
        drawn.run(t, Context(Rng(1)))["pairs.left"].tolist()
        == drawn.run(t, Context(Rng(1)))["pairs.left"].tolist()
    )


def listed_of(made):
    return int(made["pairs.left"][0]), int(made["pairs.right"][0])


# ---- regression of reward differences: the properties of the sheet --------------------------------------------------

LEFT, RIGHT, GAP = f64([0.1, 0.2]), f64([0.0, -0.1]), f64(1.0).reshape(1)


def test_prdp_1_at_the_reference_and_swapped_and_shifted():
    zero = torch.zeros(1, 2, dtype=torch.float64)
    close(reward_difference_loss(zero, zero, GAP, beta=2.0), [0.25])
    close(
        reward_difference_loss(LEFT, RIGHT, GAP, beta=2.0, clip=0.05),
        reward_difference_loss(RIGHT, LEFT, -GAP, beta=2.0, clip=0.05),
    )
    x = f64(2.0, 1.0) + 100.0
    close(pair_gaps(x, torch.tensor([0]), torch.tensor([1])), [1.0])


def test_prdp_2_the_hand_case_and_where_its_gradient_goes():
    left, right = LEFT.clone().requires_grad_(), RIGHT.clone().requires_grad_()
    close(reward_difference_loss(left, right, GAP, beta=2.0), [0.01])
    loss = reward_difference_loss(left, right, GAP, beta=2.0, clip=0.05)
    close(loss, [0.1225])
    loss.sum().backward()
    close(left.grad, [[0.0, 0.0]])
    close(right.grad, [[2 * 0.35, 0.0]])


def test_prdp_3_the_plain_gradient_where_the_plain_loss_is_larger_or_equal():
    gap = f64(-1.0).reshape(1)  # the log-ratios moved the wrong way: plain (.4 + .5)^2, clipped (.15 + .5)^2
    for clip in (0.05, math.inf, 0.1 + 1e-9):
        left, right = LEFT.clone().requires_grad_(), RIGHT.clone().requires_grad_()
        loss = reward_difference_loss(left, right, gap, beta=2.0, clip=clip)
        plain = reward_difference_loss(left, right, gap, beta=2.0)
        close(loss, plain)
        grads = [
            torch.autograd.grad(value.sum(), (left, right), retain_graph=True) for value in (loss, plain)
        ]
        for got, want in zip(*grads, strict=True):
            assert torch.equal(got, want) and want.abs().min() > 1
    wide = reward_difference_loss(LEFT, RIGHT, GAP, beta=2.0, clip=math.inf)
    assert torch.equal(wide, reward_difference_loss(LEFT, RIGHT, GAP, beta=2.0))


def test_prdp_3_the_clip_is_around_the_old_log_ratio():
    shifted = reward_difference_loss(
        LEFT + 3.0, RIGHT - 1.0, GAP + 16.0, LEFT + 3.0, RIGHT - 1.0, beta=2.0, clip=0.05
    )
    close(shifted, reward_difference_loss(LEFT + 3.0, RIGHT - 1.0, GAP + 16.0, beta=2.0))
    left = (LEFT + 0.2).requires_grad_()
    loss = reward_difference_loss(left, RIGHT, GAP * 9, LEFT, RIGHT, beta=2.0, clip=0.05)
    close(loss, [(0.4 + 0.1 - 4.5) ** 2])
    assert not torch.autograd.grad(loss.sum(), left)[0].any()


def test_prdp_4_the_optimum_of_the_rl_objective_has_loss_0_for_every_pair():
    m, s, beta, slope = (
        *f64(0.3, 0.8),
        1.7,
        0.9,
    )  # reference N(m, s^2), reward slope * x: the optimum is a shift
    best = torch.distributions.Normal(m + slope * s**2 / beta, s)
    reference = torch.distributions.Normal(m, s)
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    tilted = (reference.log_prob(grid) + slope * grid / beta).exp()
    tilted = tilted / torch.trapezoid(tilted, grid)
    close(tilted, best.log_prob(grid).exp(), 1e-12)
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio, pairs = best.log_prob(x) - reference.log_prob(x), same_group_pairs(torch.zeros(40).long())
    gap = pair_gaps(slope * x[:, 0], *pairs)
    close(
        reward_difference_loss(ratio[pairs.left], ratio[pairs.right], gap, beta=beta), torch.zeros(780), 1e-20
    )
    worse = reward_difference_loss(0.9 * ratio[pairs.left], 0.9 * ratio[pairs.right], gap, beta=beta)
    assert worse.mean() > 1e-3


@pytest.mark.parametrize("clip", [None, 0.05])
def test_prdp_5_two_passes_give_the_gradient_of_one(clip):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(
        4, 5, 3, generator=generator, dtype=torch.float64
    )  # four rows, five steps, three parameters
    old = 0.02 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    theta = (0.05 * torch.randn(3, generator=generator, dtype=torch.float64)).requires_grad_()
    pairs, x = same_group_pairs(torch.zeros(4).long()), f64(0.3, -0.2, 0.9, 0.1)
    gap, target = pair_gaps(x, *pairs), pair_gaps(x, *pairs) / 1.5

    def ratio(k):
        return weight[:, k] @ theta + old[:, k]

    whole = torch.stack([ratio(k) for k in range(5)], 1)
    one, two = whole[pairs.left], whole[pairs.right]
    loss = reward_difference_loss(one, two, gap, old[pairs.left], old[pairs.right], beta=1.5, clip=clip)
    full = torch.autograd.grad(loss.sum(), theta)[0]

    r = whole.detach()
    near = r if clip is None else old + (r - old).clamp(-clip, clip)
    plain = r[pairs.left].sum(1) - r[pairs.right].sum(1) - target
    clipped = near[pairs.left].sum(1) - near[pairs.right].sum(1) - target
    active = clipped.square() > plain.square()
    assert clip is None or 0 < int(active.sum()) < len(active), "both branches are seen"
    inside = (r - old).abs() < (math.inf if clip is None else clip)
    d = 2 * torch.where(active, clipped, plain)
    summed = torch.zeros(3, dtype=torch.float64)
    for k in range(5):  # the memory of one step
        step = ratio(k)
        m = [torch.where(active, inside[end, k].double(), 1.0) for end in pairs]
        part = (d * (m[0] * step[pairs.left] - m[1] * step[pairs.right])).sum()
        summed += torch.autograd.grad(part, theta)[0]
    close(summed, full, 1e-12)


def test_prdp_5_exchanging_rewards_flips_the_gradient_at_the_reference_only():
    def grad(start, gap):
        left = start.clone().requires_grad_()
        loss = reward_difference_loss(left, torch.zeros_like(left), gap, beta=2.0)
        return torch.autograd.grad(loss.sum(), left)[0]

    zero = torch.zeros(1, 2, dtype=torch.float64)
    close(grad(zero, GAP), -grad(zero, -GAP))
    assert (grad(LEFT, GAP) + grad(LEFT, -GAP)).abs().min() > 0.5


def test_prdp_6_equal_rewards_pull_together_and_nonsense_is_refused():
    left = LEFT.clone().requires_grad_()
    loss = reward_difference_loss(left, RIGHT, GAP * 0, beta=2.0)
    close(loss, [0.16])
    close(torch.autograd.grad(loss.sum(), left)[0], [[0.8, 0.8]])
    assert reward_difference_loss(LEFT, RIGHT, GAP * NAN, beta=2.0, clip=0.1).isnan().all()
    for beta in (0.0, -1.0, NAN, math.inf):
        with pytest.raises(ConfigError, match="beta must be above 0"):
            reward_difference_loss(LEFT, RIGHT, GAP, beta=beta)
        with pytest.raises(ConfigError, match="beta must be above 0"):
            dpo_loss(GAP, beta=beta)
    for clip in (0.0, -0.1, NAN):
        with pytest.raises(ConfigError, match="clip must be above 0"):
            reward_difference_loss(LEFT, RIGHT, GAP, beta=2.0, clip=clip)


# ---- Diffusion-DPO -------------------------------------------------------------------------------------------------


def test_diffusion_dpo_starts_at_log_2_and_equals_the_formula():
    e = [f64(0.5, 0.3).requires_grad_(), f64(0.6, 0.2).requires_grad_(), f64(0.55, 0.35), f64(0.5, 0.3)]
    beta = 100.0
    want = [
        -math.log(1 / (1 + math.exp((beta / 2) * ((w - wr) - (lo - lr)))))
        for w, lo, wr, lr in zip(*(t.tolist() for t in e), strict=True)
    ]
    margin = diffusion_dpo_margin(*e)
    loss = dpo_loss(margin, beta=beta)
    close(loss, want)
    loss.sum().backward()
    slope = torch.sigmoid(-beta * margin.detach()) * beta / 2
    close(e[0].grad, slope)
    close(e[1].grad, -slope)
    same = diffusion_dpo_margin(e[0], e[1], e[0], e[1])
    assert same.tolist() == [0.0, 0.0]
    close(dpo_loss(same, beta=5000.0), [math.log(2)] * 2)
    close(dpo_loss(f64(-1e6, 1e6), beta=5000.0), [5e9, 0.0])
