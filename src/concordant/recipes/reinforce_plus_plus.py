"""REINFORCE++: no group; the return of each token, whitened over all tokens of the batch (Hu et al. 2025)."""

from concordant.core.chain import Chain, chain, stage
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import batch_zscore, spread, weighted_sum
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo


def reinforce_plus_plus(rewards: tuple[str, ...] = ("correct",), weights: tuple[float, ...] = ()) -> Chain:
    """Terminal reward to go (gamma 1), whitened over tokens."""
    return chain(
        total=stage(weighted_sum, x=rewards, weights=weights),
        returns=stage(spread, x="total"),
        advantage=stage(batch_zscore, x="returns", mask="mask", eps=1e-8, eps_at="var"),
    )


recipe = Recipe(
    title="REINFORCE++: batch-whitened token returns",
    kind="baseline",
    world="lm/arithmetic",
    source="REINFORCE++ (2025-01); verl 0.9.1",
    arms={
        "reinforce-plus-plus": Arm(reinforce_plus_plus(), ("correct",), PolicyGradient()),
        "grpo": Arm(grpo(), ("correct",), PolicyGradient()),
    },
    provenance={
        "chain.advantage.eps": "1e-8 inside the root, ddof 1 over tokens [code: verl]",
        "gamma": "1 [code: verl default], so that every token's return is the rollout's reward",
    },
)
