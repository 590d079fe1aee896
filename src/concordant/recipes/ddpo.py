"""DDPO: policy gradients on DDIM steps, with statistics of each prompt over recent epochs (2023-05)."""

from concordant.core.chain import Chain, chain, part, stage
from concordant.core.recipe import Arm, Recipe
from concordant.kernels import RollingZscore, clip_term, clip_values, spread, weighted_sum
from concordant.objectives import PolicyGradient
from concordant.samplers import Denoise


def ddpo(rewards: tuple[str, ...] = ("cls",), weights: tuple[float, ...] = ()) -> Chain:
    """Sum of rewards, standardised by the prompt's own recent rewards, the same for every step."""
    return chain(
        total=stage(weighted_sum, x=rewards, weights=weights),
        z=stage(RollingZscore(), x="total"),
        clipped=stage(clip_values, x="z", low=-5.0, high=5.0),
        advantage=stage(spread, x="clipped"),
    )


LOSS = PolicyGradient(term=part(clip_term, low=1e-4, high=1e-4))
STEPS = Denoise(steps=20, noise=1.0)

recipe = Recipe(
    title="DDPO: denoising diffusion policy optimisation",
    kind="baseline",
    world="flow/digits",
    source="DDPO (2023-05)",
    baseline="flow-grpo",
    arms={"ddpo": Arm(ddpo(("attributes",)), ("attributes",), LOSS, STEPS)},
    world_options={"model": "ddim", "prompts": "attributes"},
    profiles={"quick": {"prompts": 24, "group_size": 8, "steps": 100, "lr": 3e-4, "pool": 16}},
    provenance={
        "chain.z": "buffer 16, batch statistics below 16 entries, eps 1e-6 [code]",
        "sampler": "DDIM with eta 1 [code], 20 steps [ours]; 50 [code]",
        "objective.term": "clip 1e-4, advantages clipped at 5 [code]",
        "train.lr": "3e-4 [code: LoRA]",
    },
)
