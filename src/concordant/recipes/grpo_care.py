"""GRPO-CARE: a bonus for correct rollouts whose answer a slowly moving reference finds likely (arXiv 2506.16141)."""

from dataclasses import replace

from concordant.core.chain import Chain, chain, part, stage
from concordant.core.recipe import Arm, Claim, Recipe, Reference
from concordant.kernels import (
    accurate_set,
    group_zscore,
    kl_k3,
    on_policy_ratio,
    plain_term,
    selected_bonus,
    span_likelihood,
    spread,
    weighted_sum,
)
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo
from concordant.scoring import LogProb

REWARDS = ("correct", "format")


def grpo_care(rewards: tuple[str, ...] = REWARDS, weights: tuple[float, ...] = ()) -> Chain:
    """The first reward is the accuracy; the bonus is one more summand of weight 1."""
    accuracy = rewards[0]
    return chain(
        likelihood=stage(span_likelihood, logp="ref_logp", span="answer_span"),
        accurate=stage(accurate_set, correct=accuracy),
        bonus=stage(selected_bonus, x="likelihood", reward=accuracy, select="accurate"),
        total=stage(weighted_sum, x=(*rewards, "bonus"), weights=(*weights, 1.0) if weights else ()),
        z=stage(group_zscore, x="total"),
        advantage=stage(spread, x="z"),
    )


LOSS = PolicyGradient(ratio=part(on_policy_ratio), term=part(plain_term))
EMA = Reference("ema", decay=0.995, every=1)
reference_probe, policy_probe = (LogProb("reference"),), (LogProb("policy"),)

recipe = Recipe(
    title="GRPO-CARE: consistency-aware reinforcement learning",
    world="lm/arithmetic",
    source="GRPO-CARE (2025-06)",
    arms={
        "grpo-care": Arm(grpo_care(), REWARDS, LOSS, probes=reference_probe, reference=EMA),
        "grpo-kl": Arm(
            grpo(REWARDS),
            REWARDS,
            replace(LOSS, kl=part(kl_k3), kl_weight=0.04),
            reference=Reference("fixed"),
        ),
        "grpo": Arm(grpo(REWARDS), REWARDS, LOSS, note="no KL: does the gain come from dropping it?"),
        "care-online": Arm(grpo_care(), REWARDS, LOSS, probes=policy_probe, note="the policy judges itself"),
        "care-frozen": Arm(grpo_care(), REWARDS, LOSS, probes=reference_probe, reference=Reference("fixed")),
    },
    baseline="grpo-kl",
    controls=("grpo", "care-online", "care-frozen"),
    quick_arms=("grpo-care", "grpo-kl", "grpo", "care-online"),
    claims=(
        Claim("consistent", "grpo-kl", margin=0.02, refuted_by="no gain in answers implied by the trace"),
        Claim("consistent", "grpo", margin=0.02, refuted_by="the gain vanishes once KL is removed from GRPO"),
        Claim("accuracy", "grpo-kl", margin=0.01, refuted_by="no gain in accuracy"),
    ),
    profiles={"quick": {"prompts": 16, "group_size": 8, "steps": 100}},
    provenance={
        "chain.bonus": "coefficient 0.5, cap 0.95, margin 0 [code]",
        "chain.likelihood": "exactly the answer tokens [derived]; the release includes the tag's closing bracket",
        "reference": "decay 0.995 [code] every step [derived: every 10 steps of 1000 would not move in 100]",
        "objective": "no KL, no clipping, mean over rollouts [code]",
        "world": "text instead of rendered scenes [derived]; consistency by parsing the trace",
    },
)
