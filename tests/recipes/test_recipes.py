"""Every recipe: small, without arithmetic, with honest arms that differ only where they say."""

import ast
import importlib
from pathlib import Path

import pytest

from concordant import recipes
from concordant.core.chain import Chain
from concordant.core.check import check_chain
from concordant.core.edits import difference
from concordant.core.errors import ConfigError
from concordant.core.recipe import PROFILES
from concordant.experiment import build
from concordant.loops.train import train

SLUGS = recipes.slugs()
SYSTEMS = [slug for slug in SLUGS if recipes.get(slug).kind == "system"]
ARMS = [(slug, arm) for slug in SLUGS for arm in recipes.get(slug).arms]

# Stages in which an arm's chain may differ from the method's, by recipe: and in no others.
DECLARED = {
    ("gdpo", "grpo"): {"z", "total", "whitened", "advantage", "*"},
    ("gdpo", "grpo-no-std"): {"z", "total", "whitened", "advantage", "*"},
    ("gdpo", "gdpo-no-whitening"): {"whitened", "advantage"},
    ("gdpo", "gdpo-conditioned"): {"short_if_correct", "z"},
    ("copo", "copo-zero"): {"local_weight"},
    ("copo", "only-global"): set(),
    ("grpo-care", "care-online"): set(),
    ("grpo-care", "care-frozen"): set(),
    ("prof", "grpo"): {"agreement", "chosen"},
    ("prof", "random-balanced"): {"chosen"},
    ("prof", "prof-correct"): {"chosen"},
    ("prof", "blend"): {"agreement", "chosen", "quality", "total"},
    ("sage", "grpo"): set(),
    ("sage", "grpo-large"): set(),
    ("sage", "fixed-hints"): set(),
    ("sage", "sage-off-policy"): set(),
    ("sage", "grpo-filter"): {"tied", "mixed"},
    ("verpo", "pass-rate"): {"difficulty", "calibrated"},
    ("verpo", "difficulty-only"): {"calibrated"},
    ("verpo", "verpo-local"): {"fused"},
    ("verpo", "flat-verpo"): {"rate", "partial"},
    ("tempflow-grpo", "flow-grpo"): {"timing"},
    ("tempflow-grpo", "weights"): set(),
    ("tempflow-grpo", "inverse-weights"): {"timing"},
    ("tempflow-grpo", "branching"): {"timing"},
    ("tempflow-grpo", "tempflow-calls"): set(),
    ("tempflow-grpo", "soft-std"): {"z"},
    ("densegrpo", "dense"): set(),
    ("densegrpo", "dense-flat"): set(),
    ("densegrpo", "one-step"): set(),
    ("densegrpo", "values"): {"gain", "advantage"},
    ("pref-grpo", "shuffled"): {"wins"},
    ("pref-grpo", "no-ties"): {"wins"},
    ("pref-grpo", "rank"): {"pairs", "prefer", "wins"},
    ("pref-grpo", "guarded"): {"inverse_length"},
    ("prdp", "prdp-unclipped"): set(),
    ("prdp", "prdp-16"): set(),
}
REWARD_IS_THE_METHOD = ("pref-grpo",)
BUDGETS = {"group_size", "pool", "steps", "reward_budget", "lr"}


def test_the_systems_and_baselines_of_this_version_are_there() -> None:
    assert {"gdpo", "copo", "grpo-care", "prof", "sage", "verpo"} <= set(SYSTEMS)
    assert {"tempflow-grpo", "densegrpo", "pref-grpo", "prdp"} <= set(SYSTEMS)
    baselines = set(SLUGS) - set(SYSTEMS)
    assert {"grpo", "dr-grpo", "rloo", "reinforce-plus-plus", "dapo"} <= baselines
    assert {"flow-grpo", "dance-grpo", "mix-grpo", "ddpo", "diffusion-dpo"} <= baselines


@pytest.mark.parametrize("slug", SLUGS)
def test_a_recipe_is_short_and_holds_no_arithmetic(slug: str) -> None:
    path = Path(str(importlib.import_module(f"concordant.recipes.{slug.replace('-', '_')}").__file__))
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    nodes = list(ast.walk(ast.parse(text)))
    assert not [
        n for n in nodes if isinstance(n, ast.BinOp | ast.For | ast.While | ast.Lambda | ast.AugAssign)
    ]


@pytest.mark.parametrize("slug", SLUGS)
def test_a_recipe_is_complete(slug: str) -> None:
    recipe = recipes.get(slug)
    assert recipe.slug == slug == next(iter(recipe.arms))
    assert recipe.source
    assert recipe.provenance, "defaults carry their provenance"
    assert isinstance(recipes.method(slug)(), Chain)
    if recipe.kind == "system":
        assert recipe.controls and recipe.claims
        assert all(claim.refuted_by for claim in recipe.claims)
        assert recipe.baseline in recipe.arms
        assert set(recipe.controls) - {"care-frozen"} <= set(recipe.arms_of("quick"))


@pytest.mark.parametrize(("slug", "arm"), ARMS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_arm_binds_in_every_profile(slug: str, arm: str, profile: str) -> None:
    experiment = build(slug, arm=arm, profile=profile)
    assert experiment.train.steps <= (2 if profile == "smoke" else 1600)


@pytest.mark.slow
@pytest.mark.parametrize("slug", SYSTEMS)
def test_the_method_runs_in_smoke(slug: str, tmp_path: Path) -> None:
    summary = train(build(slug, profile="smoke"), tmp_path / slug)
    assert summary["cost"]["steps"] == 2
    assert summary["metrics"]["accuracy"] == summary["metrics"]["accuracy"]  # no NaN
    assert summary["cost"]["rollouts"] > 0


@pytest.mark.parametrize(("slug", "arm"), DECLARED)
def test_arms_differ_only_where_declared(slug: str, arm: str) -> None:
    recipe = recipes.get(slug)
    changes = difference(recipe.arm().chain, recipe.arm(arm).chain)
    assert {change.stage for change in changes} == DECLARED[slug, arm]


@pytest.mark.parametrize(("slug", "arm"), [pair for pair in ARMS if pair[0] in SYSTEMS])
def test_arms_share_rewards_and_budget(slug: str, arm: str) -> None:
    method, other = recipes.get(slug).arm(), recipes.get(slug).arm(arm)
    assert method.rewards == other.rewards or slug in REWARD_IS_THE_METHOD
    assert set(other.train) <= BUDGETS


@pytest.mark.parametrize(("slug", "arm"), ARMS)
def test_no_chain_has_findings(slug: str, arm: str) -> None:
    objective = recipes.get(slug).arm(arm).objective
    streams = {c for s in getattr(objective, "streams", ()) for c in (s.advantage, s.weight, s.where)}
    streams |= {getattr(objective, name) for name in ("pairs", "gap") if hasattr(objective, name)}
    findings = [f for f in check_chain(recipes.get(slug).arm(arm).chain) if f.stage not in streams]
    unread = {f.stage for f in findings if f.code == "unread-stage"}
    assert [f for f in findings if f.code != "unread-stage"] == []
    assert unread <= (
        {"z", "local", "local_weight", "overall_weight", "soft", "entropy"} if arm == "only-global" else set()
    )


def test_an_unknown_slug_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gdpo'"):
        recipes.get("gdpoo")
