"""Rewards of a real run go through the engine: hanging ones are recorded, overlap and cache change no score."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from concordant.core.errors import ConfigError, RewardError
from concordant.experiment import build
from concordant.loops.folder import resolved
from concordant.loops.run import Run
from concordant.loops.train import train
from concordant.worlds.build import make_policy, make_rewards, make_world
from tests.tiny import make_data, make_model

ODD = """
import time

def odd(completion, answer):
    if int(answer) % 8 == 1:
        while True:
            pass
    return float(len(set(completion)))

def best(completions, **columns):
    return [float(text == max(completions)) for text in completions]

def stopped(completion, context):
    return context.rng.random() if context.step < 1 else None
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("own")
    data, _ = make_data(folder)
    (folder / "odd.py").write_text(ODD)
    return {"model": str(make_model(folder)), "data": data, "profile": "smoke"}


def build_with(own: dict[str, Any], *names: str, sets: tuple[str, ...] = ()) -> Any:
    rewards = tuple(f"{own['data'].parent / 'odd.py'}:{name}" for name in names)
    return build("grpo", rewards=rewards, sets=("train.max_new_tokens=4", *sets), **own)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_hanging_reward_is_missing_and_the_run_ends(own: dict[str, Any], tmp_path: Path) -> None:
    before = threading.active_count()
    summary = train(build_with(own, "odd", "best", sets=("scoring.timeout=0.3",)), tmp_path)
    assert summary["cost"]["steps"] == 2
    lines = lines_of(tmp_path)
    hung = sum(line.get("missing_reasons", {}).get("odd: timed out after 0.3 s", 0) for line in lines)
    assert hung == sum(line["missing/odd"] * line["rollouts"] for line in lines) > 0
    assert all(line["missing/best"] == 0 for line in lines)
    assert lines[0]["scores"]["best"]["calls"] <= 4, "a call a group"
    scored = lines[0]["scores"]["odd"]
    assert scored["calls"] + scored["repeated"] == lines[0]["rollouts"] == 32
    assert lines[0]["scoring_seconds"]["odd"] >= 0
    records = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(records) == sum(line["rollouts"] for line in lines) * 2, "one for each rollout and reward"
    assert len({(one["step"], one["id"], one["reward"]) for one in records}) == len(records)
    late = [one for one in records if one["missing"] == "timed out after 0.3 s"]
    assert len(late) == hung
    assert all(one["value"] is None and one["reward"] == "odd" for one in late)
    assert all(one["attempts"] == 1 and one["seconds"] > 0.29 for one in late if one["attempts"])
    assert all(one["value"] is not None for one in records if not one["missing"])
    assert threading.active_count() == before


def test_the_policy_of_missing_values_is_an_option_of_the_run(own: dict[str, Any], tmp_path: Path) -> None:
    train(build_with(own, "stopped", sets=("scoring.missing=drop-group",)), tmp_path / "drop")
    lines = lines_of(tmp_path / "drop")
    assert [line["kept"] for line in lines] == [1.0, 0.0]
    with pytest.raises(RewardError, match="its policy is to stop then; the first: returned None"):
        train(build_with(own, "stopped", sets=("scoring.missing=fail",)), tmp_path / "fail")
    assert not (tmp_path / "fail" / "summary.json").exists()


def test_options_of_scoring_are_checked_and_written_down(own: dict[str, Any]) -> None:
    experiment = build_with(own, "best", sets=("scoring.workers=4", "scoring.missing=exclude"))
    assert resolved(experiment)["scoring"]["workers"] == 4
    assert experiment.sources["scoring.workers"] == "set"
    assert [(r.name, r.missing, r.inline) for r in make_rewards(experiment, None)] == [
        ("best", "exclude", False)
    ]
    for wrong, message in (
        ("scoring.worker=4", "did you mean 'workers'"),
        ("scoring.workers=0", "at least 1"),
        ("scoring.missing=drop", "does not fit"),
        ("scoring.timeout=-1", "not be negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_with(own, "best", sets=(wrong,))


def test_rewards_of_a_world_run_in_the_trainers_process() -> None:
    experiment = build("gdpo", profile="smoke")
    assert all(reward.inline for reward in make_rewards(experiment, make_world(experiment)))


def test_parts_that_overlap_sample_and_score_what_the_whole_does(own: dict[str, Any], tmp_path: Path) -> None:
    tables = {}
    for parts in (1, 3):
        experiment = build_with(own, "best", sets=(f"scoring.overlap={parts}",))
        world = make_world(experiment)
        run = Run(experiment, tmp_path / str(parts), world, make_policy(experiment, world))
        try:
            tables[parts], _ = run._sample(run.rng)
        finally:
            run.scorer.close()
    whole, parted = tables[1], tables[3]
    assert whole.fields["completion"] == parted.fields["completion"]
    assert torch.equal(whole["best"], parted["best"])
    assert torch.equal(whole["id"], parted["id"])
    same_group = [t["group"][:, None] == t["group"][None, :] for t in (whole, parted)]
    assert torch.equal(*same_group)


def test_overlap_is_refused_where_a_reward_judges_the_batch(own: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "b.py"
    file.write_text(
        "from concordant import reward\n\n\n@reward(level='batch')\n"
        "def whole(completion):\n    return [1.0] * len(completion)\n"
    )
    wrong = {**own, "rewards": (f"{file}:whole",), "sets": ("scoring.overlap=2",)}
    with pytest.raises(ConfigError, match="'whole' judges the whole batch"):
        build("grpo", **wrong)


def test_scores_are_kept_from_run_to_run(own: dict[str, Any], tmp_path: Path) -> None:
    experiment = build_with(own, "best", sets=(f"scoring.cache={tmp_path / 'scores.sqlite'}",))
    first, second = train(experiment, tmp_path / "a"), train(experiment, tmp_path / "b")
    assert first["metrics"] == second["metrics"]
    assert lines_of(tmp_path / "a")[0]["scores"]["best"]["cached"] == 0
    assert lines_of(tmp_path / "b")[0]["scores"]["best"]["cached"] == 32


def test_workers_end_when_a_run_raises(own: dict[str, Any], tmp_path: Path) -> None:
    def children() -> str:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    before = children()
    file = tmp_path / "broken.py"
    file.write_text("def broken(completion):\n    return {}['x']\n")
    with pytest.raises(RewardError, match=r"failed on all .* KeyError"):
        train(build("grpo", **own, rewards=(f"{file}:broken",)), tmp_path / "run")
    assert children() == before
