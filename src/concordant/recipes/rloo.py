"""RLOO: REINFORCE with the mean of the other group members as baseline (Ahmadian et al. 2024)."""

from concordant.core.chain import Chain, chain, part, stage
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import group_loo, rollout_sum, spread, weighted_sum, whole_sequence_ratio
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo


def rloo(rewards: tuple[str, ...] = ("correct",), weights: tuple[float, ...] = ()) -> Chain:
    """Sum of rewards minus the mean of the others in the group."""
    return chain(
        total=stage(weighted_sum, x=rewards, weights=weights),
        left_out=stage(group_loo, x="total"),
        advantage=stage(spread, x="left_out"),
    )


recipe = Recipe(
    title="RLOO: leave-one-out REINFORCE",
    kind="baseline",
    world="lm/arithmetic",
    source="Back to Basics (2024-02); TRL 1.16 RLOOTrainer",
    arms={
        "rloo": Arm(
            rloo(),
            ("correct",),
            PolicyGradient(ratio=part(whole_sequence_ratio), aggregate=part(rollout_sum)),
        ),
        "grpo": Arm(grpo(), ("correct",), PolicyGradient()),
    },
    provenance={
        "objective.ratio": "one ratio for the whole sequence [code: TRL RLOOTrainer]",
        "objective.kl": "none here; TRL subtracts 0.05 * k1 from the reward by default",
    },
)
