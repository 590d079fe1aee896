"""GRPO: add the rewards, then standardise the sum inside each group (Shao et al. 2024)."""

from concordant.core.chain import Chain, chain, stage
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import group_zscore, spread, weighted_sum
from concordant.objectives import PolicyGradient


def grpo(rewards: tuple[str, ...] = ("correct",), weights: tuple[float, ...] = ()) -> Chain:
    """Sum of rewards, standardised in the group."""
    return chain(
        total=stage(weighted_sum, x=rewards, weights=weights),
        z=stage(group_zscore, x="total"),
        advantage=stage(spread, x="z"),
    )


recipe = Recipe(
    title="GRPO: group relative policy optimisation",
    kind="baseline",
    world="lm/arithmetic",
    source="DeepSeekMath (2024-02); TRL 1.16, verl 0.9.1",
    arms={"grpo": Arm(grpo(), ("correct",), PolicyGradient())},
    provenance={
        "chain.z.eps": "1e-4 [code: TRL]; verl has 1e-6, the paper none",
        "chain.z.ddof": "1 [code: TRL, verl]; the paper's text has the population standard deviation",
        "objective.term": "clip 0.2 on both sides [paper]",
        "objective.aggregate": "mean over the tokens of a rollout, then over rollouts [paper]",
    },
)
