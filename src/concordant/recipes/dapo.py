"""DAPO: dynamic sampling, clip-higher, token-mean loss (Yu et al. 2025)."""

from concordant.core.chain import Chain, part
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import dual_clip_term, token_mean
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo
from concordant.samplers import Refill


def dapo(rewards: tuple[str, ...] = ("correct",), weights: tuple[float, ...] = ()) -> Chain:
    """The same credit as GRPO; what differs is the sampler and the objective."""
    return grpo(rewards, weights)


objective = PolicyGradient(
    term=part(dual_clip_term, low=0.2, high=0.28, bound=10.0), aggregate=part(token_mean)
)

recipe = Recipe(
    title="DAPO: decoupled clip and dynamic sampling",
    kind="baseline",
    world="lm/arithmetic",
    source="DAPO (2025-03); verl recipe",
    arms={
        "dapo": Arm(dapo(), ("correct",), objective, sampler=Refill("correct")),
        "grpo": Arm(grpo(), ("correct",), PolicyGradient()),
    },
    profiles={"quick": {"token_budget": 400_000}},
    provenance={
        "objective.term": "clip 0.2 / 0.28 [paper], dual clip 10 [code: verl recipe]",
        "sampler.rounds": "4 [ours]; verl generates up to 10 batches and then raises",
        "overlong punishment": "left out: completions of this world end well before the limit [ours]",
    },
)
