"""Diffusion-DPO, online: prefer the best image of a group to the worst by their denoising errors (2023-11)."""

from concordant.core.chain import Chain, chain, stage
from concordant.core.recipe import Arm, Recipe, Reference
from concordant.kernels import best_worst_pairs, weighted_sum
from concordant.objectives import DenoisingPreference
from concordant.samplers import Denoise
from concordant.scoring import DenoisingErrors


def diffusion_dpo(rewards: tuple[str, ...] = ("cls",), weights: tuple[float, ...] = ()) -> Chain:
    """One pair a group: its best image and its worst; a tied group gives none."""
    return chain(
        total=stage(weighted_sum, x=rewards, weights=weights),
        pairs=stage(best_worst_pairs, x="total"),
    )


recipe = Recipe(
    title="Diffusion-DPO: direct preference optimisation of denoisers",
    kind="baseline",
    world="flow/digits",
    source="Diffusion-DPO (2023-11)",
    baseline="flow-grpo",
    arms={
        "diffusion-dpo": Arm(
            diffusion_dpo(),
            ("cls",),
            DenoisingPreference(beta=100.0),
            Denoise(noise=0.0),
            probes=(DenoisingErrors(draws=4),),
            reference=Reference(),
        )
    },
    full_world={"model": "dit"},
    profiles={"quick": {"prompts": 24, "group_size": 8, "steps": 100, "lr": 3e-4}},
    provenance={
        "objective.beta": "100 [code: online DPO of flow_grpo]; 2000 to 5000 [code: Stable Diffusion]",
        "pairs": "best against worst of the group, online [code: flow_grpo]; the paper's data are fixed",
        "probes.draws": "4 times and noises a pair [ours]; 1 [code]",
        "sampler": "the ODE: the loss needs no log-probability [ours]",
    },
)
