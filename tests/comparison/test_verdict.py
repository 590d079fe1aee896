"""Intervals and verdicts, against numbers computed by hand and coverage by simulation."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from concordant.comparison.verdict import (
    bootstrap_interval,
    decide,
    judge,
    paired_differences,
    paired_interval,
)


@dataclass(frozen=True)
class FakeClaim:
    metric: str = "accuracy"
    versus: str = "grpo"
    arm: str = ""
    direction: str = "higher"
    margin: float = 0.0
    refuted_by: str = "grpo reaches the same accuracy"
    meter: str | None = None
    disease: float = 0.0


def test_t_interval_by_hand():
    # differences .01, .02, .03: mean .02, sd .01, t(.975, 2) = 4.30265, half = 4.30265 * .01 / sqrt(3) = .024841
    low, high = paired_interval([0.01, 0.02, 0.03])
    assert low == pytest.approx(-0.004841, abs=1e-6)
    assert high == pytest.approx(0.044841, abs=1e-6)


def test_no_interval_from_one_seed():
    assert paired_interval([0.3]) is None
    assert bootstrap_interval([0.3]) is None
    assert paired_interval([]) is None


def test_equal_differences_have_no_width():
    assert paired_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_bootstrap_stays_inside_what_it_saw():
    low, high = bootstrap_interval([0.1, 0.2, 0.6])
    assert 0.1 <= low < high <= 0.6


def coverage_of_t(n: int, trials: int, rng: np.random.Generator) -> float:
    samples = rng.normal(size=(trials, n))
    half = stats.t.ppf(0.975, n - 1) * samples.std(axis=1, ddof=1) / math.sqrt(n)
    for row, width in zip(samples[:5], half[:5], strict=True):  # the vectorised formula is the library's
        low, high = paired_interval(row)
        assert high - low == pytest.approx(2 * width)
    return float((np.abs(samples.mean(axis=1)) <= half).mean())


def coverage_of_bootstrap(n: int, trials: int, rng: np.random.Generator) -> float:
    hits = 0
    for trial, row in enumerate(rng.normal(size=(trials, n))):
        low, high = bootstrap_interval(row, draws=400, seed=trial)
        hits += low <= 0 <= high
    return hits / trials


@pytest.mark.parametrize(("n", "least", "most"), [(3, 0.70, 0.82), (5, 0.79, 0.89)])
def test_coverage_by_simulation(n, least, most):
    rng = np.random.default_rng(20 + n)
    assert coverage_of_t(n, 20_000, rng) == pytest.approx(0.95, abs=0.006)
    assert least < coverage_of_bootstrap(n, 2_000, rng) < most  # why it is not the default


@pytest.mark.parametrize(
    ("interval", "direction", "margin", "verdict"),
    [
        ((0.01, 0.05), "higher", 0.0, "supported"),
        ((-0.01, 0.05), "higher", 0.0, "inconclusive"),
        ((-0.05, -0.01), "higher", 0.0, "refuted"),
        ((-0.05, -0.01), "lower", 0.0, "supported"),
        ((0.01, 0.05), "lower", 0.0, "refuted"),
        ((-0.01, 0.015), "higher", 0.02, "refuted"),  # contains zero, excludes what would matter
        ((-0.01, 0.03), "higher", 0.02, "inconclusive"),
        ((0.001, 0.015), "higher", 0.02, "refuted"),  # surely there, surely too small
        ((0.001, 0.03), "higher", 0.02, "supported"),
        ((0.0, 0.0), "higher", 0.0, "inconclusive"),
        ((0.0, 0.0), "higher", 0.01, "refuted"),
    ],
)
def test_verdict_rules(interval, direction, margin, verdict):
    assert decide(interval, direction, margin)[0] == verdict


def test_pairs_are_by_seed_and_skip_what_is_missing():
    assert paired_differences([0.5, None, 0.7], [0.4, 0.1, math.nan]) == pytest.approx([0.1])


ARMS = {
    "gdpo": {"accuracy": [0.71, 0.72, 0.74]},
    "grpo": {"accuracy": [0.60, 0.62, 0.63]},
}


def test_judge_supported():
    judged = judge(FakeClaim(), "gdpo", ARMS, {})
    assert (judged.verdict, judged.arm, judged.versus) == ("supported", "gdpo", "grpo")
    assert judged.difference == pytest.approx(0.32 / 3)
    assert judged.as_json()["interval"] == pytest.approx(list(paired_interval([0.11, 0.10, 0.11])))


@pytest.mark.parametrize(
    ("claim", "arms", "meters", "reason"),
    [
        (FakeClaim(versus="dapo"), ARMS, {}, "arm 'dapo' was not run"),
        (FakeClaim(metric="length"), ARMS, {}, "did not measure 'length'"),
        (FakeClaim(meter="tied", disease=0.4), ARMS, {"tied": 0.1}, "disease absent"),
        (FakeClaim(meter="tied", disease=0.4), ARMS, {}, "was not measured"),
        (FakeClaim(meter="tied", disease=0.4), ARMS, {"tied": math.nan}, "disease absent"),
        (FakeClaim(), {k: {"accuracy": v["accuracy"][:1]} for k, v in ARMS.items()}, {}, "one seed"),
        (FakeClaim(), {**ARMS, "grpo": {"accuracy": [None, None, None]}}, {}, "no seed"),
    ],
)
def test_what_stands_in_the_way_is_inconclusive_and_said(claim, arms, meters, reason):
    judged = judge(claim, "gdpo", arms, meters)
    assert judged.verdict == "inconclusive"
    assert reason in judged.reason


def test_disease_present_is_judged():
    assert judge(FakeClaim(meter="tied", disease=0.4), "gdpo", ARMS, {"tied": 0.4}).verdict == "supported"


def test_smoke_is_not_judged_but_measured():
    judged = judge(FakeClaim(), "gdpo", ARMS, {}, profile="smoke")
    assert judged.verdict == "unjudged"
    assert judged.difference is not None
