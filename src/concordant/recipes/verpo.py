"""VeRPO: pay for single tests by how hard they are, next to the outcome of the whole suite (arXiv 2601.03525)."""

from typing import Any

from concordant import kernels
from concordant.core.chain import Chain, chain, stage
from concordant.core.recipe import Arm, Claim, Recipe
from concordant.objectives import PolicyGradient
from concordant.recipes.grpo import grpo


def verpo(rewards: tuple[str, str] = ("solved", "tests"), weights: tuple[float, ...] = (1.0, 1.0)) -> Chain:
    """The first reward is the outcome, the second the results of the single checks [b u]."""
    outcome, checks = rewards
    return chain(
        rate=stage(kernels.pass_rates, checks=checks),
        difficulty=stage(kernels.difficulty_weights, x="rate"),
        calibrated=stage(kernels.density_calibrate, x="difficulty", rate="rate"),
        partial=stage(kernels.weighted_partial_success, checks=checks, weight="calibrated"),
        turn_advantage=stage(kernels.group_center, x="partial"),
        success=stage(kernels.decayed_outcome, x=outcome),
        trajectory_advantage=stage(kernels.group_center, x="success"),
        fused=stage(kernels.weighted_sum, x=("trajectory_advantage", "turn_advantage"), weights=weights),
        advantage=stage(kernels.spread, x="fused"),
    )


def uncalibrated(method: Chain) -> Chain:
    """All tests count as equally dense, so that the scale of the reward stays."""
    return method.set("calibrated", bandwidth=1e3)


def arm(method: Chain, note: str = "") -> Arm:
    """All arms share reward and objective; the columns of tests come from the world."""
    return Arm(method, ("solved",), PolicyGradient(), note=note)


FULL, FLAT = verpo(), verpo(("solved", "flat_tests"))
OUTCOME = grpo(("solved",))
TIED: dict[str, Any] = {"margin": 0.01, "meter": "tied_groups", "disease": 0.4}
SKEWED: dict[str, Any] = {"margin": 0.01, "meter": "easy_share", "disease": 0.6}

recipe = Recipe(
    title="VeRPO: verifiable dense rewards from tests",
    world="lm/programs",
    source="VeRPO (2026-01)",
    arms={
        "verpo": arm(FULL),
        "grpo": arm(OUTCOME.swap("z", kernels.group_center), "outcome of the whole suite only, centred"),
        "pass-rate": arm(uncalibrated(FULL).set("difficulty", sharpness=0.0), "all tests weigh alike"),
        "difficulty-only": arm(uncalibrated(FULL), "no density: many easy tests count as many"),
        "verpo-local": arm(FULL.set("fused", weights=(0.0, 1.0)), "without the outcome"),
        "grpo-std": arm(OUTCOME, "divided by the standard deviation, as usual"),
        "flat-verpo": arm(FLAT, "equally hard tests: density must not matter"),
        "flat-difficulty-only": arm(uncalibrated(FLAT), "equally hard tests, no density"),
    },
    controls=("pass-rate", "difficulty-only"),
    quick_arms=("verpo", "grpo", "pass-rate", "difficulty-only"),
    claims=(
        Claim("accuracy", "grpo", refuted_by="the outcome alone has the same pass@1", **TIED),
        Claim("rare", "pass-rate", refuted_by="a plain pass rate does as well off the common path", **SKEWED),
        Claim("rare", "difficulty-only", refuted_by="weights without density do as well there", **SKEWED),
    ),
    profiles={"quick": {"prompts": 10, "group_size": 10, "steps": 100, "max_new_tokens": 12}},
    provenance={
        "chain.difficulty.sharpness": "2 [derived]; the paper's value is not public",
        "chain.calibrated": "bandwidth 0.1, eps 1e-6 [derived]; density from v3 of the paper, v1 and v2 stop before",
        "chain.success.decay": "0.95 [derived]; decay per turn [paper], here every rollout has one turn",
        "chain.fused.weights": "1 and 1 [derived]; sum of two centred advantages, no std [paper]",
        "success": "read from the last turn [derived]",
    },
)
