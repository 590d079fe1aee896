"""Filters, votes, gates, sums, keys and presence."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng
from concordant.kernels import (
    answer_entropy,
    balanced_drop_counts,
    clip_values,
    complement,
    composite_key,
    entropy_gate,
    group_zscore,
    label_missing,
    majority_vote,
    nonzero_gate,
    present,
    present_group,
    process_outcome_filter,
    set_consistency,
    weighted_sum,
)

NAN, INF = float("nan"), float("inf")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(got, want, atol=1e-9):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol, equal_nan=True)


# --- PROF ------------------------------------------------------------------------------------------------------------


def test_drop_counts_of_eight():
    right = torch.arange(9)
    p, q = balanced_drop_counts(right, 8 - right, drop=4)
    assert p.tolist() == [0, 0, 0, 1, 2, 3, 4, 4, 4] and q.tolist() == [4, 4, 4, 3, 2, 1, 0, 0, 0]
    kept = list(zip((right - p).tolist(), (8 - right - q).tolist(), strict=True))
    assert kept == [(0, 4), (1, 3), *[(2, 2)] * 5, (3, 1), (4, 0)]


@pytest.mark.parametrize(
    ("p", "q", "m", "want"),
    [
        (4, 4, 1, (0, 1)),
        (4, 4, 5, (2, 3)),
        (4, 4, 3, (2, 1)),
        (4, 3, 2, (2, 0)),
    ],
)
def test_halves_round_to_even(p, q, m, want):
    assert tuple(balanced_drop_counts(torch.tensor([p]), torch.tensor([q]), drop=m)[:, 0].tolist()) == want


def prof_group():
    quality = f64(0.9, 0.2, 0.7, 0.6, 0.8, 0.1, 0.3, 0.4)
    outcome = f64(1, 1, 1, 1, 0, 0, 0, 0)
    return 2 * (quality - 0.5) * (2 * outcome - 1), outcome, torch.zeros(8, dtype=torch.long), torch.arange(8)


def test_filter_by_hand():
    x, outcome, g, i = prof_group()
    kept = process_outcome_filter(x, outcome, g, i, Rng())
    assert kept.tolist() == [True, False, True, False, False, True, True, False]
    assert process_outcome_filter(x, outcome, g, i, Rng(), drop=0).all()
    joint = process_outcome_filter(x, outcome, g, i, Rng(), mode="joint", drop=3)
    assert joint.tolist() == [True, False, True, False, False, True, True, True]


@pytest.mark.parametrize("mode", ["both", "correct", "incorrect", "random"])
def test_every_mode_drops_the_same_counts_and_depends_on_ids_not_order(mode):
    gen = torch.Generator().manual_seed(0)
    x, outcome = torch.randn(40, generator=gen).double(), torch.randint(0, 2, (40,), generator=gen).double()
    g, i = torch.arange(40) // 8, torch.randperm(40, generator=gen)
    kept = process_outcome_filter(x, outcome, g, i, Rng(7), mode=mode)
    for group in range(5):
        m = g == group
        right, wrong = int(outcome[m].sum()), int((1 - outcome[m]).sum())
        p, q = balanced_drop_counts(torch.tensor([right]), torch.tensor([wrong]))[:, 0].tolist()
        assert int((kept & m & (outcome == 1)).sum()) == right - p
        assert int((kept & m & (outcome == 0)).sum()) == wrong - q
    order = torch.randperm(40, generator=gen)
    again = process_outcome_filter(x[order], outcome[order], g[order], i[order], Rng(7), mode=mode)
    assert torch.equal(again, kept[order])
    best = process_outcome_filter(x, outcome, g, i, Rng(7), mode="both")
    for value, ranked in ((1, mode in ("both", "correct")), (0, mode in ("both", "incorrect"))):
        if ranked:
            assert torch.equal(kept[outcome == value], best[outcome == value])
    if mode != "both":
        assert not torch.equal(kept, process_outcome_filter(x, outcome, g, i, Rng(8), mode=mode))


def test_filter_ties_refusals_and_missing():
    x, outcome, g, i = prof_group()
    tied = process_outcome_filter(torch.zeros(8), outcome, g, i.flip(0), Rng())
    assert tied.tolist() == [True, True, False, False] * 2  # the lower id goes first
    with pytest.raises(ConfigError, match="drop=7 would leave 1 of the 8 rows"):
        process_outcome_filter(x, outcome, g, i, Rng(), drop=7)
    with pytest.raises(DataError, match="outcome must be 0 or 1"):
        process_outcome_filter(x, outcome * 2, g, i, Rng())
    with pytest.raises(ConfigError, match="did you mean 'random'"):
        process_outcome_filter(x, outcome, g, i, Rng(), mode="randum")
    lost = x.clone()
    lost[[0, 1]] = NAN
    kept = process_outcome_filter(lost, outcome, g, i, Rng(), drop=4)
    assert not kept[:2].any() and int(kept.sum()) == 2
    ragged = process_outcome_filter(x, outcome, torch.tensor([0] * 6 + [1] * 2), i, Rng())
    assert ragged[6:].all() and int(ragged[:6].sum()) == 2


def test_statistics_after_the_filter_are_those_of_the_kept():
    x, outcome, g, i = prof_group()
    kept = process_outcome_filter(x, outcome, g, i, Rng())
    z = group_zscore(outcome, g, kept)
    close(z[kept], group_zscore(outcome[kept], g[kept]))
    all_right = process_outcome_filter(x, torch.ones(8).double(), g, i, Rng())
    assert int(all_right.sum()) == 4 and set(
        group_zscore(torch.ones(8), g, all_right)[all_right].tolist()
    ) == {0.0}


# --- COPO ------------------------------------------------------------------------------------------------------------

COUNTS = {
    (6,): (0.0, 1.0, 0.00669),
    (5, 1): (0.6500, 0.7904, 0.14806),
    (4, 2): (0.9183, 0.7040, 0.39927),
    (3, 3): (1.0, 0.6776, 0.5),
    (2, 2, 2): (1.5850, 0.4890, 0.94906),
    (1,) * 6: (2.5850, 0.1667, 0.99964),
}


@pytest.mark.parametrize("counts", COUNTS)
def test_entropy_consistency_and_gate(counts):
    answer = torch.tensor([a for a, c in enumerate(counts) for _ in range(c)])
    g, (entropy, factor, weight) = torch.full((6,), 4), COUNTS[counts]
    h = answer_entropy(answer, g)
    close(h, [entropy] * 6, atol=6e-5)
    close(set_consistency(torch.ones(6), h, g, use_entropy=True), [factor] * 6, atol=6e-5)
    close(set_consistency(torch.full((6,), 0.3), h, g), [0.3] * 6)
    close(entropy_gate(h), [weight] * 6, atol=6e-5)
    close(complement(entropy_gate(h)), [1 - weight] * 6, atol=6e-5)
    if len(counts) == 1:
        assert h.tolist() == [0.0] * 6


def test_consistency_of_one_and_of_the_judged_members():
    close(set_consistency(f64(0.7), f64(0.0), torch.tensor([1]), use_entropy=True), [0.7])
    got = set_consistency(f64(1, 1, 1), f64(1, 1, NAN), torch.tensor([1, 1, 1]), use_entropy=True)
    close(got, [0.5, 0.5, NAN])


def test_unanswered_is_left_out_or_an_answer_of_its_own():
    answer, g = torch.tensor([3, 3, -1, -1]), torch.full((4,), 0)
    close(answer_entropy(answer, g), [0, 0, NAN, NAN])
    close(answer_entropy(label_missing(answer), g), [1.0] * 4)
    close(answer_entropy(torch.tensor([0, 1, 2, 3]), g, base=4.0), [1.0] * 4)
    with pytest.raises(ConfigError, match="base must exceed 1"):
        answer_entropy(answer, g, base=1.0)


def test_gate_modes():
    w, local, reward = f64(0.4, 0.4, 0.4), f64(0, -1.5, NAN), f64(1, 0, 1)
    close(nonzero_gate(w, local), [0, 0.4, NAN])
    close(nonzero_gate(w, reward), [0.4, 0, 0.4])


def test_votes_by_hand():
    answer = torch.tensor([4, 4, 9, 2, 7, -1, 5])
    g = torch.tensor([0, 0, 0, 1, 1, 1, -1])
    vote = majority_vote(answer, g)
    assert vote.winner.tolist() == [4, 4, 4, 2, 2, -1, -1]
    close(vote.share, [2 / 3] * 3 + [0.5, 0.5, NAN, NAN], atol=1e-7)
    close(vote.agrees, [1, 1, 0, 1, 0, NAN, NAN])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([-1, 0, 1, 2, 2**62]), st.sampled_from([-1, 0, 5, 2**61])), max_size=20
    )
)
def test_votes_against_a_loop(rows):
    answer, g = (torch.tensor([r[j] for r in rows], dtype=torch.long) for j in range(2))
    vote, entropy = majority_vote(answer, g), answer_entropy(answer, g)
    for i, (a, group) in enumerate(rows):
        said = [b for b, h in rows if h == group and b >= 0]
        if a < 0 or group < 0:
            assert vote.winner[i] == -1 and vote.share[i].isnan() and entropy[i].isnan()
            continue
        winner = min(set(said), key=lambda b: (-said.count(b), b))
        share = [said.count(b) / len(said) for b in set(said)]
        assert vote.winner[i] == winner and vote.agrees[i] == float(a == winner)
        assert abs(vote.share[i] - max(share)) < 1e-6
        assert abs(entropy[i] + sum(p * math.log2(p) for p in share)) < 1e-6


# --- sums, keys, presence --------------------------------------------------------------------------------------------


def test_three_policies_for_a_missing_signal():
    x = f64([1, NAN, NAN, 2], [10, 20, NAN, NAN])
    close(weighted_sum(x), [11, NAN, NAN, NAN])
    close(weighted_sum(x, missing="neutral"), [11, 20, NAN, 2])
    close(weighted_sum(x, missing="renormalise"), [11, 40, NAN, 4])
    close(weighted_sum(x, weights=(3.0, 0.5), missing="renormalise"), [8, 70, NAN, 7])
    close(
        weighted_sum(x, weights=(1.0, 0.0)), [1, NAN, NAN, 2]
    )  # a signal that does not count cannot be missed
    close(weighted_sum(x, weights=(0.0, 1.0), missing="neutral"), [10, 20, NAN, NAN])
    close(weighted_sum(x, weights=(0.0, 0.0)), [0] * 4)
    with pytest.raises(ConfigError, match=r"3 weights .* for 2 signals"):
        weighted_sum(x, weights=(1.0, 1.0, 1.0))
    with pytest.raises(DataError, match="stacks no signal"):
        weighted_sum(x[:0])
    with pytest.raises(ConfigError, match="did you mean 'drop'"):
        weighted_sum(x, missing="dropp")


def test_sum_keeps_the_graph():
    x = torch.tensor([[1.0, NAN], [2.0, 3.0]], requires_grad=True)
    weighted_sum(x, weights=(2.0, 3.0), missing="neutral").sum().backward()
    assert x.grad.tolist() == [[2.0, 0.0], [3.0, 3.0]]


def test_presence():
    x = f64([1, NAN, 3, 4], [1, 2, 3, 4])
    g = torch.tensor([0, 0, 1, -1])
    everyone = torch.ones(4, dtype=torch.bool)
    assert present(x).tolist() == [True, False, True, True]
    assert present_group(x, g, everyone).tolist() == [False, False, True, False]
    dropped = torch.tensor([True, False, True, True])
    assert present_group(x, g, dropped).tolist() == [True, False, True, False]
    zeros = x.nan_to_num()
    assert present_group(zeros, g, everyone, ~x.isnan()).tolist() == [False, False, True, False]


def test_keys():
    x = torch.tensor([[1, 1, 1, -1, 2], [2, 2, 3, 2, 1]])
    key = composite_key(x)
    assert key[0] == key[1] and len(set(key.tolist())) == 4 and key[3] == -1
    assert bool((key[key != -1] >= 0).all())
    assert key[0] == composite_key(x[:, :1])[0], "stable across batches"
    many = torch.stack([torch.arange(40000) % 200, torch.arange(40000) // 200])
    assert composite_key(many).unique().numel() == 40000
    with pytest.raises(DataError, match="stacks no id"):
        composite_key(x[:0])


def test_limits():
    close(clip_values(f64(-3, NAN, 3), high=1.0), [-3, NAN, 1])
    with pytest.raises(ConfigError, match="give low, high or both"):
        clip_values(f64(1))
    with pytest.raises(ConfigError, match="must not exceed"):
        clip_values(f64(1), low=2.0, high=1.0)
