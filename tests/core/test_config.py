"""Overrides reach every number, and a typo stops the run with the nearest name."""

import json

import pytest

from concordant.core.config import override, parse_override, plain
from concordant.core.errors import ConfigError
from concordant.core.recipe import Arm, Claim, Recipe, Reference, TrainConfig, train_config
from concordant.experiment import build
from concordant.objectives import PolicyGradient
from concordant.recipes.gdpo import gdpo
from concordant.recipes.grpo import grpo


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chain.zz.eps=1", "did you mean 'z'"),
        ("chain.z.epz=1", "did you mean 'eps'"),
        ("train.stepz=3", "did you mean 'steps'"),
        ("train.lr=fast", "expected float"),
        ("train.lr=-1", "must be above 0"),
        ("train.prompts=0", "must be at least 1"),
        ("objective.term.lo=1", "did you mean 'low'"),
        ("objective.streams.0.advantage=whole", "nothing makes"),
        ("world.lvels=1", "did you mean 'levels'"),
        ("sampler.rounds=1", "has no sampler"),
        ("cahin.z.eps=1", "did you mean 'chain'"),
        ("train", "key=value"),
        ("train=3", "keys start with"),
    ],
)
def test_wrong_overrides_teach(text: str, message: str) -> None:
    with pytest.raises((ConfigError, Exception), match=message) as caught:
        build("gdpo", sets=[text])
    assert type(caught.value).__module__ == "concordant.core.errors"


def test_right_overrides_are_used_and_their_source_recorded() -> None:
    e = build(
        "gdpo", sets=["chain.z.eps=1e-6", "objective.term.high=0.3", "train.lr=3e-4", 'world.levels=["2x1"]']
    )
    assert e.arm.chain.stages["z"].options["eps"] == 1e-6
    assert e.arm.objective.term.options["high"] == 0.3
    assert e.train.lr == 3e-4
    assert e.sources["train.lr"] == "set"
    assert e.sources["train.steps"] == "recipe"
    data = json.loads(json.dumps(plain(e)))
    assert data["arm"]["chain"]["z"]["options"]["eps"] == 1e-6
    assert data["arm"]["chain"]["z"]["options"]["ddof"] == 1, "defaults are resolved"


def test_later_layers_win_and_name_themselves() -> None:
    recipe = Recipe("t", "lm/arithmetic", {"a": Arm(grpo(), ("correct",), PolicyGradient(), train={"lr": 1.0})},
                    slug="a", profiles={"quick": {"steps": 7, "lr": 0.5}, "smoke": {"steps": 1}})  # fmt: skip
    config, sources = train_config(recipe, "smoke", recipe.arm())
    assert (config.steps, config.lr, sources["steps"], sources["lr"]) == (1, 1.0, "profile", "arm")
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        train_config(recipe, "quik", recipe.arm())


def test_recipes_refuse_claims_about_arms_that_do_not_exist() -> None:
    arms = {"a": Arm(grpo(), ("correct",), PolicyGradient())}
    with pytest.raises(ConfigError, match="has no arm 'b'"):
        Recipe("t", "w", arms, claims=(Claim("accuracy", "b"),))
    with pytest.raises(ConfigError, match="unknown profile"):
        Recipe("t", "w", arms, profiles={"fast": {}})


def test_nonsense_cannot_be_built() -> None:
    with pytest.raises(ConfigError, match="decay"):
        Reference("ema", decay=1.5)
    with pytest.raises(ConfigError, match=r"train.temperature"):
        TrainConfig(temperature=0.0)


def test_lists_become_tuples_and_text_stays_text() -> None:
    assert parse_override("chain.total.weights=[1, 2]") == ("chain.total.weights", (1, 2))
    assert parse_override("chain.total.missing=neutral") == ("chain.total.missing", "neutral")
    changed = override(gdpo(("a", "b")), "total.weights", (1, 2))
    assert changed.stages["total"].options["weights"] == (1.0, 2.0)
