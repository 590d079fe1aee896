"""SAGE: prompts that nobody solves are sampled again with hints that the policy wrote itself (2026-02)."""

from dataclasses import replace
from typing import Any

from concordant.core.chain import Chain, keep, part, stage
from concordant.core.recipe import Arm, Claim, Recipe, Reference
from concordant.kernels import clip_term, negate, tied_groups
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo
from concordant.samplers import HintLadder, HintSchedule
from concordant.worlds.lm_arithmetic import HARD


def sage(rewards: tuple[str, ...] = ("correct",), weights: tuple[float, ...] = ()) -> Chain:
    """The same credit as GRPO; what differs is the sampler."""
    return grpo(rewards, weights).set("z", eps=1e-6)


LOSS = PolicyGradient(term=part(clip_term, low=0.2, high=0.28))
CREDIT = sage()
START_WRITES: dict[str, Any] = {"sampler": HintLadder(writer="reference"), "reference": Reference()}
filtered = CREDIT.insert("z", tied=stage(tied_groups, x="total"), mixed=keep(negate, x="tied"))


def arm(sampler: object = None, note: str = "", method: Chain = CREDIT, **train: int) -> Arm:
    """All arms share reward and objective."""
    return Arm(method, ("correct",), LOSS, sampler=sampler, note=note, train=train)


recipe = Recipe(
    title="SAGE: self-hinting language models",
    world="lm/arithmetic",
    source="SAGE (2026-02)",
    arms={
        "sage": arm(HintLadder()),
        "grpo": arm(),
        "grpo-large": arm(note="twice the rollouts a prompt for the same tokens", group_size=16),
        "fixed-hints": replace(arm(note="hints of the start"), **START_WRITES),
        "sage-off-policy": arm(HintLadder(context="plain"), "log-probabilities without the hint"),
        "grpo-filter": arm(note="tied groups dropped", method=filtered),
        "sage-light": arm(HintSchedule(), "one level a visit, remembered per task", pool=64),
    },
    controls=("grpo-large", "sage-off-policy", "fixed-hints"),
    quick_arms=("sage", "grpo", "grpo-large", "fixed-hints", "sage-off-policy"),
    claims=(
        Claim(
            "accuracy",
            "grpo",
            margin=0.01,
            refuted_by="hinted training does not raise accuracy without hints",
        ),
        Claim(
            "accuracy",
            "grpo-large",
            margin=0.01,
            refuted_by="the same tokens spent on larger groups match it",
        ),
        Claim(
            "accuracy",
            "sage-off-policy",
            margin=0.0,
            refuted_by="dropping the hint from the log-probabilities is as good",
        ),
    ),
    world_options={"levels": HARD},
    profiles={"quick": {"prompts": 8, "group_size": 8, "steps": 400, "token_budget": 230_000}},
    provenance={
        "sampler.levels": "3 [paper+code]",
        "objective.term": "clip 0.2 / 0.28 [code]",
        "chain.z.eps": "1e-6, ddof 1 [code]; the paper's text has the population standard deviation",
        "sampler (light)": "up 0.1, down 0.35 [code]; the paper has one threshold",
    },
)
