"""Flow-GRPO: each denoising step is one Gaussian action; all steps of an image share its advantage (2025-05)."""

from concordant.core.chain import Chain, chain, part, stage
from concordant.core.recipe import Arm, Recipe, Reference
from concordant.kernels import clip_term, clip_values, gaussian_kl, group_zscore, spread, weighted_sum
from concordant.objectives import PolicyGradient
from concordant.samplers import Denoise


def flow_grpo(rewards: tuple[str, ...] = ("cls",), weights: tuple[float, ...] = ()) -> Chain:
    """Sum of rewards, standardised in the group, clipped, the same for every step."""
    return chain(
        total=stage(weighted_sum, x=rewards, weights=weights),
        z=stage(group_zscore, x="total", ddof=0),
        clipped=stage(clip_values, x="z", low=-5.0, high=5.0),
        advantage=stage(spread, x="clipped"),
    )


LOSS = PolicyGradient(term=part(clip_term, low=1e-4, high=1e-4))
KL = PolicyGradient(term=LOSS.term, kl=part(gaussian_kl), kl_weight=0.04)

recipe = Recipe(
    title="Flow-GRPO: policy gradients for flow matching",
    kind="baseline",
    world="flow/digits",
    source="Flow-GRPO (2025-05)",
    baseline="flow-grpo",
    arms={
        "flow-grpo": Arm(flow_grpo(), ("cls",), LOSS, Denoise()),
        "flow-grpo-kl": Arm(
            flow_grpo(), ("cls",), KL, Denoise(), reference=Reference(), note="with the paper's KL"
        ),
    },
    quick_arms=("flow-grpo",),
    full_world={"model": "dit"},
    profiles={"quick": {"prompts": 24, "group_size": 8, "steps": 100, "lr": 3e-4}},
    provenance={
        "chain.z": "population standard deviation of the prompt's group, eps 1e-4 [code: per-prompt option]",
        "chain.clipped": "5 on both sides [code]",
        "objective.term": "clip 1e-4 on a log-probability that is the mean over latent dimensions [code]",
        "objective.kl_weight": "0.04 (GenEval, OCR) [code], without the step length [code]; arm flow-grpo-kl",
        "sampler": "a = 0.7, 10 steps, the last one not trained [code]",
        "train.lr": "3e-4 [code]; 8 of 24 images a prompt [ours: small world]",
    },
)
