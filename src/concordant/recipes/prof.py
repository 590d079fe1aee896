"""PROF: a process reward model only chooses which rollouts to train on, balanced (arXiv 2509.03403)."""

from concordant.core.chain import Chain, chain, keep, stage
from concordant.core.recipe import Arm, Claim, Recipe
from concordant.kernels import (
    group_zscore,
    pool_segments,
    process_outcome_filter,
    spread,
    step_consistency,
    weighted_sum,
)
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo
from concordant.scoring import WorldScore


def prof(rewards: tuple[str, ...] = ("correct",), weights: tuple[float, ...] = (), drop: int = 4) -> Chain:
    """Drop the least consistent rollouts of each group, then GRPO over those that are left."""
    return chain(
        agreement=stage(step_consistency, x="step_score", outcome=rewards[0]),
        chosen=keep(process_outcome_filter, x="agreement", outcome=rewards[0], drop=drop),
        total=stage(weighted_sum, x=rewards, weights=weights),
        z=stage(group_zscore, x="total", eps=1e-6),
        advantage=stage(spread, x="z"),
    )


def blend(weight: float = 0.8) -> Chain:
    """The baseline that adds the mean step score to the reward."""
    return chain(
        quality=stage(pool_segments, x="step_score", empty=0.0),
        total=stage(weighted_sum, x=("correct", "quality"), weights=(1.0, weight)),
        z=stage(group_zscore, x="total", eps=1e-6),
        advantage=stage(spread, x="z"),
    )


PROBES = (WorldScore("step_score"),)


def arm(method: Chain, note: str = "") -> Arm:
    """All arms share reward, scorer and objective."""
    return Arm(method, ("correct",), PolicyGradient(), probes=PROBES, note=note)


recipe = Recipe(
    title="PROF: process consistency filter",
    world="lm/arithmetic",
    source="PROF (2025-09)",
    arms={
        "prof": arm(prof()),
        "grpo": arm(grpo().set("z", eps=1e-6), "all 8 rollouts"),
        "random-balanced": arm(prof().set("chosen", mode="random"), "same drop counts, random choice"),
        "blend": arm(blend(), "reward + 0.8 * mean step score"),
        "prof-correct": arm(prof().set("chosen", mode="correct"), "wrong rollouts dropped at random"),
    },
    controls=("random-balanced", "blend"),
    quick_arms=("prof", "grpo", "random-balanced", "blend"),
    claims=(
        Claim(
            "steps_valid",
            "random-balanced",
            margin=0.01,
            refuted_by="a random balanced drop is as good on step validity",
        ),
        Claim("steps_valid", "grpo", margin=0.01, refuted_by="GRPO on all rollouts has steps as valid"),
        Claim("accuracy", "blend", margin=0.01, refuted_by="blending the scores is as accurate"),
        Claim("accuracy", "grpo", margin=0.01, refuted_by="GRPO on all rollouts is as accurate"),
    ),
    profiles={"quick": {"prompts": 12, "group_size": 8, "steps": 100}},
    provenance={
        "chain.chosen.drop": "4 of 8 [code: paper scripts]",
        "chain.agreement": "few 2, many 30, penalty 10 [code]; centre 0.5 does not change the ranking",
        "chain.z.eps": "1e-6, ddof 1 [code: verl]",
        "blend weight": "0.8 [code]",
    },
)
