"""Training generators: missing rewards, ties, budgets, resumption, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from concordant.core.errors import ConfigError
from concordant.core.recipe import Experiment
from concordant.core.seeds import Progress
from concordant.experiment import build
from concordant.loops.run import Run
from concordant.loops.train import train
from concordant.recipes.flow_grpo import flow_grpo
from concordant.scoring.reward import reward
from concordant.worlds.build import make_policy, make_world


@reward(inline=True)
def picky(image: Any, label: int) -> float:
    """Raises for twos, says NaN for threes, and the same for all ones."""
    if label == 2:
        raise ValueError("no twos")
    if label == 3:
        return float("nan")
    return 0.5 if label == 1 else float(image.mean())


def experiment(sets: tuple[str, ...] = (), slug: str = "flow-grpo", **options: Any) -> Experiment:
    return build(slug, profile="smoke", sets=("train.prompts=10", *sets), **options)


def with_reward(function: Any) -> Experiment:
    made = experiment()
    arm = dataclasses.replace(made.arm, chain=flow_grpo((function.__name__,)), rewards=(function,))
    return dataclasses.replace(made, arm=arm)


def test_missing_rewards_and_ties_train_nothing(tmp_path: Path) -> None:
    made = with_reward(picky)
    world = make_world(made)
    run = Run(made, tmp_path, world, make_policy(made, world))
    rng = run.rng.at(0)
    table, _ = run._sample(rng)
    table, _ = run._credit(table, rng, Progress(0, 1))
    label = torch.tensor(table.fields["label"])
    for wrong in (2, 3):
        assert bool(table["picky"][label == wrong].isnan().all())
        assert bool(table["advantage"][(label == wrong)[:, None] & table["mask"]].isnan().all())
    assert bool((table["advantage"][label == 1] == 0).all())
    work = run.arm.objective.prepare(table, run.policy.reads)
    trained = label[work.active()].unique().tolist()
    assert trained == [0, 4, 5, 6, 7, 8, 9]
    run.scorer.close()


def test_one_missing_image_leaves_the_others_their_advantages(tmp_path: Path) -> None:
    made = experiment()
    world = make_world(made)
    run = Run(made, tmp_path, world, make_policy(made, world))
    rng = run.rng.at(0)
    table, _ = run._sample(rng)
    scores = table["cls"].clone()
    scores[3] = float("nan")
    whole, _ = run._credit(table.with_columns({"cls": ("b", scores)}), rng, Progress(0, 1))
    fewer, _ = run._credit(table.take(torch.arange(table.rows) != 3), rng, Progress(0, 1))
    torch.testing.assert_close(whole["advantage"][torch.arange(table.rows) != 3], fewer["advantage"])
    run.scorer.close()


@pytest.mark.parametrize("slug", ["flow-grpo", "densegrpo", "ddpo", "prdp"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(slug: str, tmp_path: Path) -> None:
    small = (
        "train.steps=3",
        "train.save_every=1",
        "train.eval_every=3",
        "train.prompts=4",
        "train.group_size=4",
    )
    quick = ("sampler.balance=null",) if slug == "densegrpo" else ()
    made = build(slug, profile="smoke", sets=(*small, *quick))
    train(made, tmp_path / "whole")
    first = Run(made, tmp_path / "parts", make_world(made), make_policy(made, make_world(made)))
    (tmp_path / "parts").mkdir()
    first.records.rewind(0)
    first.measure_start()
    first.save()
    first.advance()
    first.advance()
    first.scorer.close()
    second = Run(made, tmp_path / "parts", make_world(made), make_policy(made, make_world(made)))
    from concordant.loops import checkpoint

    second.load(*checkpoint.load(checkpoint.checkpoints(tmp_path / "parts" / "state")[-1]))
    second.records.rewind(second.step)
    second.advance()
    second.scorer.close()
    one, two = (
        load_file(sorted((tmp_path / f / "state").glob("*.safetensors"))[-1]) for f in ("whole", "parts")
    )
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert torch.equal(values, two[name]), name


def test_budgets_of_evaluations_and_reward_calls_stop_a_run(tmp_path: Path) -> None:
    # a table of 10 prompts x 8 images costs 800 evaluations and 80 calls
    spent = train(experiment(("train.steps=50", "train.evaluation_budget=1500")), tmp_path / "a")["cost"]
    assert (spent["evaluations"], spent["steps"]) == (1600, 2)
    spent = train(experiment(("train.steps=50", "train.reward_budget=81")), tmp_path / "b")["cost"]
    assert (spent["reward_calls"], spent["steps"]) == (160, 2)


def test_reports_have_the_numbers_of_generators(tmp_path: Path) -> None:
    train(experiment(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["evaluations"] for line in lines] == [800, 1600]
    assert {"gold", "accuracy", "cls", "mmd", "frechet", "diversity"} <= set(lines[-1]["evaluate"])
    assert sorted(p.name for p in (tmp_path / "samples").glob("*.png")) == ["00000000.png", "00000002.png"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: experiment(("train.temperature=0.5",)), "'train.temperature' has no meaning"),
        (lambda: experiment(("train.max_new_tokens=9",)), "'train.max_new_tokens' has no meaning"),
        (lambda: experiment(("world.shift=0",)), "shift"),
        (lambda: experiment(("train.group_size=1",), slug="prdp"), "nothing to be compared with"),
        (lambda: experiment(("sampler.noise=-1",)), "noise"),
        (lambda: experiment(("sampler.nois=1",)), "did you mean"),
        (lambda: experiment(("world.model=ddmi",)), "did you mean 'ddim'|no model 'ddmi'"),
    ],
)
def test_nonsense_is_refused_when_the_run_is_built(make: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        train(make(), tmp_path)
