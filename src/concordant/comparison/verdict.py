"""From per-seed numbers to an interval and a verdict.

Arms are compared on the same seeds, so the unit of evidence is the difference of two arms on one seed. The default
interval is Student's t on these differences. A percentile bootstrap over seeds is the common choice, but with three or
five seeds it cannot reach beyond the values it saw: where 95 % is promised it covers the truth in about 74 % (three
seeds) and 84 % (five seeds) of cases. The t interval keeps its promise for differences that are roughly normal, which
means over many held-out prompts are. Both are here, and a test simulates their coverage.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from concordant.core.recipe import Claim

SUPPORTED, REFUTED, INCONCLUSIVE, UNJUDGED = "supported", "refuted", "inconclusive", "unjudged"

Interval = tuple[float, float]
Metrics = Mapping[str, Sequence[float | None]]


def paired_interval(differences: Sequence[float], level: float = 0.95) -> Interval | None:
    """Return Student's t interval of the mean difference.

    Formula: `mean(d) ± t(level, n - 1) * sd(d) / sqrt(n)` with `sd` over n - 1.

    Args:
        differences: one number a seed, the metric of one arm minus that of the other on this seed.
        level: coverage under normal differences.

    Returns:
        (low, high), or None for fewer than two seeds: one seed says nothing about the spread. Equal differences give
        an interval of no width.
    """
    from scipy import stats  # takes most of a second to import, and a single run needs none of it

    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return None
    half = float(stats.t.ppf(0.5 + level / 2, values.size - 1) * stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def bootstrap_interval(
    differences: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval | None:
    """Return the percentile bootstrap interval of the mean difference, resampling seeds.

    It under-covers with few seeds (see the module's text); use it from about fifteen seeds on.

    Args:
        differences: one number a seed.
        level: nominal coverage.
        draws: number of resamples.
        seed: seed of the resampling.

    Returns:
        (low, high), or None for fewer than two seeds.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return None
    picks = np.random.default_rng(seed).integers(values.size, size=(draws, values.size))
    low, high = np.quantile(values[picks].mean(axis=1), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Judgement:
    """One claim, judged: `difference` and `interval` are arm minus versus, in the metric's own direction."""

    metric: str
    arm: str
    versus: str
    direction: str
    margin: float
    difference: float | None
    interval: Interval | None
    per_seed: tuple[float, ...]
    verdict: str
    reason: str
    refuted_by: str

    def as_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {
            **asdict(self),
            "interval": self.interval and list(self.interval),
            "per_seed": list(self.per_seed),
        }


def decide(interval: Interval, direction: str, margin: float) -> tuple[str, str]:
    """Return verdict and reason for an interval of arm minus versus.

    Supported: the whole interval lies on the claimed side of zero. Refuted: the interval excludes every effect of at
    least `margin` (with margin 0: it lies on the other side of zero). An effect that is surely there and surely smaller
    than the margin is refuted too: the claim was an effect that matters.
    """
    low, high = interval if direction == "higher" else (-interval[1], -interval[0])
    if high < max(margin, 0.0):
        if low > 0:
            return REFUTED, f"there is an effect, but it is smaller than the {margin:g} that would matter"
        if margin > 0:
            return REFUTED, f"an effect of {margin:g} or more is excluded"
        return REFUTED, "the interval lies on the other side of zero"
    if low > 0:
        return SUPPORTED, "the interval excludes zero"
    return INCONCLUSIVE, "the interval contains zero"


def paired_differences(arm: Sequence[float | None], versus: Sequence[float | None]) -> list[float]:
    """Return arm minus versus on the seeds where both were measured."""
    pairs = [(a, b) for a, b in zip(arm, versus, strict=True) if a is not None and b is not None]
    return [a - b for a, b in pairs if math.isfinite(a - b)]


def judge(
    claim: "Claim",
    slug: str,
    arms: Mapping[str, Metrics],
    meters: Mapping[str, float],
    profile: str = "quick",
) -> Judgement:
    """Judge one claim of a recipe.

    Args:
        claim: what the recipe claims.
        slug: the recipe's slug, which is the arm meant when the claim names none.
        arms: per arm, per metric, one number a seed (None where a run failed).
        meters: failure meters at the start of training.
        profile: `smoke` is too short to judge anything.

    Returns:
        The judgement; whatever stands in the way of one makes it inconclusive and is said in `reason`.
    """
    arm = claim.arm or slug
    found, differences = _differences(claim, arm, arms)
    interval = paired_interval(differences)
    verdict, reason = _verdict(claim, found, interval, meters, profile)
    return Judgement(
        metric=claim.metric,
        arm=arm,
        versus=claim.versus,
        direction=claim.direction,
        margin=claim.margin,
        difference=float(np.mean(differences)) if differences else None,
        interval=interval,
        per_seed=tuple(differences),
        verdict=verdict,
        reason=reason,
        refuted_by=claim.refuted_by,
    )


def _verdict(
    claim: "Claim", found: str, interval: Interval | None, meters: Mapping[str, float], profile: str
) -> tuple[str, str]:
    """Return verdict and reason; `found` is what stands in the way, if anything."""
    if profile == "smoke":
        return UNJUDGED, "the smoke profile only shows that everything runs"
    if found:
        return INCONCLUSIVE, found
    if claim.meter is not None and not meters.get(claim.meter, math.nan) >= claim.disease:
        return INCONCLUSIVE, _no_disease(claim, meters)
    if interval is None:
        return INCONCLUSIVE, "one seed gives no interval; run at least two, better five"
    verdict, reason = decide(interval, claim.direction, claim.margin)
    if interval[0] == interval[1]:
        reason += "; every seed gave the same difference, so the interval has no width"
    return verdict, reason


def _differences(claim: "Claim", arm: str, arms: Mapping[str, Metrics]) -> tuple[str, list[float]]:
    """Return what stands in the way (or nothing) and the per-seed differences."""
    for name in (arm, claim.versus):
        if name not in arms:
            return f"arm {name!r} was not run", []
        if claim.metric not in arms[name]:
            return f"arm {name!r} did not measure {claim.metric!r}", []
    differences = paired_differences(arms[arm][claim.metric], arms[claim.versus][claim.metric])
    return ("" if differences else f"no seed on which both arms measured {claim.metric!r}"), differences


def _no_disease(claim: "Claim", meters: Mapping[str, float]) -> str:
    value = meters.get(str(claim.meter))
    if value is None:
        return f"failure meter {claim.meter!r} was not measured, so nobody knows whether there was anything to cure"
    return f"disease absent: {claim.meter} is {value:.3g} at the start, the claim needs {claim.disease:g}"
