"""Dr. GRPO: group-centred rewards without the standard deviation, and a constant loss divisor (Liu et al. 2025)."""

from concordant.core.chain import Chain, chain, part, stage
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import fixed_length, group_center, spread, weighted_sum
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo


def dr_grpo(rewards: tuple[str, ...] = ("correct",), weights: tuple[float, ...] = ()) -> Chain:
    """Sum of rewards minus the group's mean."""
    return chain(
        total=stage(weighted_sum, x=rewards, weights=weights),
        centred=stage(group_center, x="total"),
        advantage=stage(spread, x="centred"),
    )


recipe = Recipe(
    title="Dr. GRPO: GRPO without length and difficulty bias",
    kind="baseline",
    world="lm/arithmetic",
    source="Understanding R1-Zero-Like Training (2025-03)",
    arms={
        "dr-grpo": Arm(dr_grpo(), ("correct",), PolicyGradient(aggregate=part(fixed_length, length=56))),
        "grpo": Arm(grpo(), ("correct",), PolicyGradient()),
    },
    provenance={"objective.aggregate.length": "the completion limit, as TRL's max_completion_length [code]"},
)
