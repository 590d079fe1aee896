"""Kill -9 at any point and resume: the final bits equal those of a run that was never stopped."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from concordant.core.errors import CheckpointError
from concordant.core.recipe import Experiment
from concordant.experiment import build
from concordant.loops import checkpoint
from concordant.loops.train import train
from tests.tiny import make_data, make_model

POINTS = 10


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("tiny")
    data, rewards = make_data(folder)
    sets = [
        "train.max_new_tokens=8",
        "train.steps=5",
        "train.save_every=2",
        "train.updates=2",
        "train.log_rollouts=8",
    ]
    return build("gdpo", profile="smoke", model=str(make_model(folder)), data=data,
                 rewards=(f"{rewards}:correct", f"{rewards}:digits"), sets=sets)  # fmt: skip


@pytest.fixture(scope="module")
def whole(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    started = time.perf_counter()
    train(experiment, folder)
    return folder, time.perf_counter() - started


def bits(folder: Path) -> dict[str, Any]:
    """Everything a run leaves, without clock times."""
    last = checkpoint.checkpoints(folder / "state")[-1]
    tensors = {name: t.numpy().tobytes() for name, t in load_file(last).items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "tensors": tensors,
        "metrics": [
            {k: v for k, v in line.items() if k not in ("seconds", "scoring_seconds")} for line in lines
        ],
        "summary": {k: v for k, v in summary.items() if k != "wall_seconds"},
        "rollouts": pq.read_table(folder / "rollouts.parquet").to_pylist(),
        "scores": pq.read_table(folder / "scores.parquet").drop(["seconds"]).to_pylist(),
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()),
    }


def killed(experiment: Experiment, folder: Path, after: float) -> bool:
    """Train in a child process that is killed after some seconds; return whether it was still at work."""
    child = os.fork()
    if child == 0:
        try:
            train(experiment, folder)
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_at_a_random_point_and_resumed(
    point: int, experiment: Experiment, whole: tuple[Path, float], tmp_path: Path
) -> None:
    folder, seconds = whole
    delay = random.Random(point).uniform(0.02, 0.95) * seconds
    killed(experiment, tmp_path / "run", delay)
    train(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(folder)


def test_killed_again_and_again(experiment: Experiment, whole: tuple[Path, float], tmp_path: Path) -> None:
    folder, seconds = whole
    interrupted = [killed(experiment, tmp_path / "run", seconds * share) for share in (0.3, 0.4, 0.5)]
    assert any(interrupted)
    train(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(folder)


def test_a_finished_run_is_returned_and_another_configuration_refused(
    experiment: Experiment, whole: tuple[Path, float]
) -> None:
    import dataclasses

    folder, _ = whole
    before = (folder / "summary.json").read_bytes()
    assert train(experiment, folder) == json.loads(before)
    other = dataclasses.replace(experiment, seed=1)
    with pytest.raises(CheckpointError, match=r"another configuration.*--fresh"):
        train(other, folder)
    assert (folder / "summary.json").read_bytes() == before


def test_a_truncated_checkpoint_is_refused_with_advice(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed_early = experiment
    train(killed_early, folder)
    (folder / "summary.json").unlink()
    states = checkpoint.checkpoints(folder / "state")
    content = states[-1].read_bytes()
    states[-1].write_bytes(content[: len(content) // 2])
    with pytest.raises(
        CheckpointError, match=rf"{states[-1].name} is damaged.*delete it to resume from {states[-2].name}"
    ):
        train(experiment, folder)
    altered = bytearray(content)
    altered[-3] ^= 1
    states[-1].write_bytes(bytes(altered))
    with pytest.raises(CheckpointError, match="does not match its digest"):
        train(experiment, folder)


def test_an_unwritable_run_folder_is_named(experiment: Experiment, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to the run folder.*--out"):
        train(experiment, blocked / "run")
