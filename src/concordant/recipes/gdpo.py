"""GDPO: standardise each reward inside its group, then sum, then whiten over the batch (arXiv 2601.05242)."""

from concordant.core.chain import Chain, chain, stage
from concordant.core.recipe import Arm, Claim, Recipe
from concordant.kernels import batch_zscore, group_center, group_zscore, multiply_gate, spread, weighted_sum
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo

REWARDS = ("correct", "format", "short")


def gdpo(rewards: tuple[str, ...] = ("correct", "format"), weights: tuple[float, ...] = ()) -> Chain:
    """Decoupled normalisation; with a single reward it is GRPO, as in the released code."""
    if len(rewards) == 1:
        return grpo(rewards, weights)
    return chain(
        z=stage(group_zscore, x=rewards),
        total=stage(weighted_sum, x="z", weights=weights),
        whitened=stage(batch_zscore, x="total"),
        advantage=stage(spread, x="whitened"),
    )


def conditioned(method: Chain) -> Chain:
    """Count the length reward only where the answer is correct."""
    return method.through("short", short_if_correct=stage(multiply_gate, x="short", gate="correct"))


def arm(method: Chain, note: str = "") -> Arm:
    """All arms share rewards and objective."""
    return Arm(method, REWARDS, PolicyGradient(), note=note)


recipe = Recipe(
    title="GDPO: group reward-decoupled normalisation",
    world="lm/arithmetic",
    source="GDPO (2026-01)",
    arms={
        "gdpo": arm(gdpo(REWARDS)),
        "grpo": arm(grpo(REWARDS), "sum first, then standardise"),
        "grpo-no-std": arm(
            grpo(REWARDS).swap("z", group_center), "centre only, the control that could explain it all"
        ),
        "gdpo-no-whitening": arm(gdpo(REWARDS).without("whitened"), "ablation of the batch step"),
        "gdpo-conditioned": arm(conditioned(gdpo(REWARDS)), "`short` counts only for correct answers"),
        "grpo-conditioned": arm(conditioned(grpo(REWARDS)), "the same gate without decoupling"),
    },
    controls=("grpo-no-std", "gdpo-no-whitening"),
    quick_arms=("gdpo", "grpo", "grpo-no-std", "gdpo-no-whitening"),
    claims=(
        Claim("accuracy", "grpo", margin=0.01, refuted_by="GRPO reaches the same accuracy at equal rollouts"),
        Claim("format", "grpo", margin=0.01, refuted_by="GRPO keeps the format as well"),
        Claim(
            "accuracy",
            "grpo-no-std",
            margin=0.01,
            refuted_by="centring without any standard deviation matches it",
        ),
    ),
    profiles={"quick": {"prompts": 12, "group_size": 8, "steps": 120}},
    provenance={
        "chain.z.eps": "1e-4, ddof 1 [code: NVlabs-TRL and TRL]; verl 1e-6",
        "chain.whitened": "over rollouts [code: TRL]; verl whitens over tokens",
        "chain.total.missing": "drop [ours]; TRL lets a missing component count 0",
        "weights": "all 1 [paper]",
    },
)
