"""MixGRPO: noise and training only in a window of steps that slides from noise to data (2025-07)."""

from concordant.core.chain import Chain, part
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import clip_term
from concordant.objectives import PolicyGradient
from concordant.recipes.flow_grpo import flow_grpo
from concordant.samplers import Denoise


def mix_grpo(rewards: tuple[str, ...] = ("cls",), weights: tuple[float, ...] = ()) -> Chain:
    """The same credit as Flow-GRPO; what differs is the sampler."""
    return flow_grpo(rewards, weights)


LOSS = PolicyGradient(term=part(clip_term, low=1e-4, high=1e-4))

recipe = Recipe(
    title="MixGRPO: ODE and SDE mixed in a sliding window",
    kind="baseline",
    world="flow/digits",
    source="MixGRPO (2025-07)",
    baseline="flow-grpo",
    arms={
        "mix-grpo": Arm(mix_grpo(), ("cls",), LOSS, Denoise(window=4, every=25)),
        "mix-grpo-random": Arm(
            mix_grpo(),
            ("cls",),
            LOSS,
            Denoise(window=4, order="random"),
            note="a window drawn for each table",
        ),
    },
    quick_arms=("mix-grpo",),
    full_world={"model": "dit"},
    profiles={"quick": {"prompts": 24, "group_size": 8, "steps": 100, "lr": 3e-4}},
    provenance={
        "sampler": "a = 0.7, window 4, moves every 25 tables, rolls back at the end [code]",
        "sampler.steps": "10 [ours]; 25 [code]",
        "objective.term": "clip 1e-4 [code]",
        "train.lr": "3e-4 [ours: small world]; 1e-5 [code]",
    },
)
