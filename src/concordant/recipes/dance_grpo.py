"""DanceGRPO: constant noise, one start noise a prompt, a random share of the steps (2025-05)."""

from concordant.core.chain import Chain, part
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import clip_term
from concordant.objectives import PolicyGradient
from concordant.recipes.flow_grpo import flow_grpo
from concordant.samplers import Denoise


def dance_grpo(rewards: tuple[str, ...] = ("cls",), weights: tuple[float, ...] = ()) -> Chain:
    """The credit of Flow-GRPO with the sample standard deviation."""
    return flow_grpo(rewards, weights).set("z", ddof=1, eps=1e-8)


LOSS = PolicyGradient(term=part(clip_term, low=1e-4, high=1e-4))

recipe = Recipe(
    title="DanceGRPO: policy gradients for visual generation",
    kind="baseline",
    world="flow/digits",
    source="DanceGRPO (2025-05)",
    baseline="flow-grpo",
    arms={
        "dance-grpo": Arm(
            dance_grpo(), ("cls",), LOSS, Denoise(kind="dance", noise=0.3, same_noise=True, fraction=0.6)
        ),
    },
    full_world={"model": "dit"},
    profiles={"quick": {"prompts": 24, "group_size": 8, "steps": 100, "lr": 3e-4}},
    provenance={
        "chain.z": "sample standard deviation, eps 1e-8 [code]",
        "sampler": "g = 0.3, one start noise a prompt, 60 % of the steps, the last one not trained [code]",
        "sampler.steps": "10 [ours]; 16 [code]",
        "objective.term": "clip 1e-4 [code]",
        "train.lr": "3e-4 [ours: small world]; 1e-5 [code]",
    },
)
