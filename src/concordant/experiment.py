"""From a slug, a profile and overrides to one fully resolved, fully checked experiment."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from concordant import recipes
from concordant.core.config import override, parse_override
from concordant.core.errors import ConfigError, nearest
from concordant.core.recipe import Arm, Experiment, PolicyOptions, Recipe, train_config
from concordant.scoring.reward import as_reward, load_reward
from concordant.scoring.scores import columns_of
from concordant.worlds import user
from concordant.worlds.build import make_rewards, make_world

LM_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("id", "task", "group", "episode", "keep", "truncated", "temperature"), "b"),
    **dict.fromkeys(("prompt_tokens", "prompt_mask"), "b q"),
    **dict.fromkeys(("tokens", "mask", "logp"), "b s"),
}
IMAGE_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("id", "task", "group", "episode", "seed", "keep"), "b"),
    **dict.fromkeys(("mask", "trainable", "logp", "sigma", "sigma_next", "coef_x", "coef_v", "std"), "b s"),
    **dict.fromkeys(("latent", "next_latent"), "b s d"),
    "sample": "b d",
}
COLUMNS = {"text": LM_COLUMNS, "image": IMAGE_COLUMNS}
UNUSED = {"text": ("evaluation_budget",), "image": ("max_new_tokens", "temperature", "token_budget")}
"""Training options that say nothing to a modality."""
_PARTS = ("train", "policy", "scoring")
_ROOTS = ("chain", "objective", "sampler", "reference", "probes", "rewards", "world", *_PARTS)


def build(
    slug: str,
    *,
    arm: str | None = None,
    profile: str = "quick",
    seed: int = 0,
    sets: Sequence[str] = (),
    model: str | None = None,
    data: str | Path | None = None,
    rewards: Sequence[Any] = (),
) -> Experiment:
    """Resolve one run and check it: columns, options, needs.

    Args:
        slug: recipe name.
        arm: arm name; None is the method itself.
        profile: `smoke`, `quick` or `full`.
        seed: seed of all random streams.
        sets: overrides `key=value`; keys start with chain, objective, sampler, reference, train, world, policy or
            scoring.
        model: the user's own model (folder or hub id); with `data` and `rewards` it replaces the recipe's world.
        data: the user's prompts (JSONL).
        rewards: the user's reward functions (callables or `file.py:name`).
    """
    recipe = recipes.get(slug)
    chosen = recipe.arm(arm)
    name = arm or next(iter(recipe.arms))
    world = recipe.world
    world_options = {**recipe.world_options, **(recipe.full_world if profile == "full" else {})}
    if model or data or rewards:
        if not (model and data and rewards):
            raise ConfigError("your own model, data and rewards go together: give all three")
        functions = tuple(load_reward(f) if isinstance(f, str) else f for f in rewards)
        chosen = _own_arm(recipe, chosen, name, functions)
        world, world_options = "user", {"data": str(data), "revision": user.data_revision(Path(data))}
    train, sources = train_config(recipe, profile, chosen)
    experiment = Experiment(
        slug, name, chosen, world, world_options, train, PolicyOptions(model=model), seed, profile,
        {f"train.{key}": source for key, source in sources.items()},
    )  # fmt: skip
    for text in sets:
        experiment = _set(experiment, text)
    check(experiment)
    return experiment


def _own_arm(recipe: Recipe, arm: Arm, name: str, functions: tuple[Any, ...]) -> Arm:
    """The arm with the user's rewards: the method is called with their names; the first one is its main reward."""
    if name != next(iter(recipe.arms)):
        raise ConfigError(
            f"with your own model only the method itself runs; for a baseline use its recipe, e.g. {recipe.baseline}"
        )
    names = tuple(as_reward(function).name for function in functions)
    if len(set(names)) < len(names):
        raise ConfigError(f"two rewards have the same name: {', '.join(names)}; rename one")
    sampler = arm.sampler
    if hasattr(sampler, "metric") and sampler.metric not in names:
        sampler = dataclasses.replace(sampler, metric=names[0])
    if hasattr(sampler, "rewards"):
        sampler = dataclasses.replace(sampler, rewards=names)
    return dataclasses.replace(
        arm, chain=recipes.method(recipe.slug)(rewards=names), rewards=functions, sampler=sampler
    )


def _set(experiment: Experiment, text: str) -> Experiment:
    key, value = parse_override(text)
    root, _, rest = key.partition(".")
    if root not in _ROOTS or not rest:
        raise ConfigError(
            f"unknown key {key!r}; keys start with one of {', '.join(_ROOTS)}; {nearest(root, _ROOTS)}"
        )
    sources = {**experiment.sources, key: "set"}
    if root == "train" and rest in UNUSED[modality(make_world(experiment))]:
        raise ConfigError(f"{key!r} has no meaning in world {experiment.world!r}; leave it out")
    if root in _PARTS:
        changed = {root: override(getattr(experiment, root), rest, value, path=root)}
    elif root == "world":
        known = dataclasses.asdict(make_world(experiment).config)
        override(known, rest, value, path="world")
        changed = {"world_options": {**experiment.world_options, rest: value}}
    else:
        part = getattr(experiment.arm, root)
        if part is None:
            raise ConfigError(f"{key!r}: the arm {experiment.arm_name!r} has no {root}")
        changed = {
            "arm": dataclasses.replace(experiment.arm, **{root: override(part, rest, value, path=root)})
        }
    return dataclasses.replace(experiment, sources=sources, **changed)


def modality(world: Any) -> str:
    """What a world's policy generates: `text` or `image`."""
    return str(getattr(world, "modality", "text"))


def check(experiment: Experiment) -> None:
    """Check every binding of the arm against the columns that world, rewards, probes and learners provide."""
    world, arm = make_world(experiment), experiment.arm
    made_for = getattr(arm.sampler, "modality", "text")
    if made_for != modality(world):
        what = {
            "image": "makes images: --model must be a folder with model_index.json (download a hub model first)",
            "text": "makes text: --model must be a causal language model",
        }
        raise ConfigError(
            f"{experiment.slug!r} {what[made_for]}; the world {world.name!r} is of {modality(world)}"
        )
    lacking = [need for need in getattr(arm.sampler, "needs", ()) if not hasattr(world, need)]
    if lacking:
        raise ConfigError(
            f"the sampler of {experiment.slug!r} needs {', '.join(lacking)}, which world {world.name!r} does not have"
        )
    columns = {**COLUMNS[modality(world)], **getattr(arm.sampler, "columns", {}), **world.columns}
    made = make_rewards(experiment, world)
    for reward in made:
        columns |= columns_of(reward)
    whole = [reward.name for reward in made if reward.level == "batch"]
    if whole and experiment.scoring.overlap > 1:
        raise ConfigError(f"reward {whole[0]!r} judges the whole batch; it needs scoring.overlap=1")
    for part in (*arm.probes, *(learner.provides for learner in arm.learners)):
        columns |= part if isinstance(part, dict) else part.columns
    columns |= arm.objective.reference_columns
    if getattr(arm.objective, "whole_groups", False) and experiment.train.group_size < 2:
        raise ConfigError(
            f"{experiment.slug!r} compares the images of a prompt, and one image has nothing to be compared with; "
            f"set train.group_size to at least 2, got {experiment.train.group_size}"
        )
    schema = arm.chain.schema({name: tuple(axes.split()) for name, axes in columns.items()})
    arm.objective.check(schema)
