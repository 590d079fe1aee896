"""Several processes of one run: `accelerate launch` with two of them takes the steps that one takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from concordant.core.errors import ConfigError
from concordant.core.table import Table
from concordant.loops.ranks import Ranks
from concordant.objectives import PolicyGradient
from concordant.samplers import Denoise, HintLadder

SETTINGS = ["train.prompts=4", "train.steps=3", "train.updates=2", "train.log_rollouts=64"]


def command(out: Path) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["run", "flow-grpo", "--profile", "smoke", *sets, "--out", str(out)]


def environment() -> dict[str, str]:
    launcher = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {**{k: v for k, v in os.environ.items() if k not in launcher}, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run by one process, and by two that gloo connects."""
    base = tmp_path_factory.mktemp("ranks")
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "-m",
        "concordant",
    ]
    for count, start in ((1, ["-m", "concordant"]), (2, launch)):
        done = subprocess.run(
            [sys.executable, *start, *command(base / str(count))],
            capture_output=True, text=True, env=environment(), check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    return {count: base / str(count) / "flow-grpo" / "flow-grpo" / "seed0" for count in (1, 2)}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_have_the_loss_and_gradient_of_one(folders: dict[int, Path]) -> None:
    for one, two in zip(lines(folders[1]), lines(folders[2]), strict=True):
        for name in ("loss", "grad_norm", "reward/cls", "rollouts", "evaluations", "reward_calls"):
            assert two[name] == pytest.approx(one[name], rel=1e-6, abs=1e-6), name


def test_their_advantages_are_those_of_one_process_on_the_same_rollouts(folders: dict[int, Path]) -> None:
    one, two = (pq.read_table(folders[count] / "rollouts.parquet").to_pylist() for count in (1, 2))
    whole = {(row["step"], row["id"]): row for row in one}
    assert len(one) == 3 * 32
    assert len(two) == 3 * 16  # the first process records its own rows, half of all
    for row in two:
        same = whole[row["step"], row["id"]]
        assert row["group"] == same["group"]
        # from the second table on, weights that differ by rounding drew the rollouts
        assert row["advantage"] == pytest.approx(same["advantage"], abs=1e-6 if row["step"] == 1 else 1e-4)


def test_they_end_with_the_same_weights(folders: dict[int, Path]) -> None:
    one, two = (load_file(sorted((folders[count] / "state").glob("*.safetensors"))[-1]) for count in (1, 2))
    moved = [name for name in one if name.startswith("policy/")]
    assert moved
    for name in moved:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5)


def test_denominators_count_the_rows_of_all_processes() -> None:
    """The losses of two halves, each told of the whole, add up to the loss of the whole."""
    rows, steps = 6, 4
    g = torch.Generator().manual_seed(0)
    whole = Table.of(
        {
            "id": ("b", torch.arange(rows)),
            "mask": ("b s", torch.rand(rows, steps, generator=g) < 0.7),
            "logp": ("b s", -torch.rand(rows, steps, generator=g)),
            "advantage": ("b s", torch.randn(rows, steps, generator=g)),
        }
    )
    objective = PolicyGradient()
    parts = [
        objective.prepare(whole.take(part), among=whole) for part in (torch.arange(2), torch.arange(2, 6))
    ]
    joined = objective.prepare(whole)
    torch.testing.assert_close(torch.cat([part.weights for part in parts], 1), joined.weights)
    torch.testing.assert_close(torch.cat([part.advantages for part in parts], 1), joined.advantages)


@pytest.mark.parametrize(
    ("sampler", "learners", "tasks", "match"),
    [
        (HintLadder(), [], 4, "HintLadder keeps a memory"),
        (Denoise(), [object()], 4, "learned parts run in one process"),
        (Denoise(), [], 5, "5 prompts a step cannot be shared equally by 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(sampler: Any, learners: list[Any], tasks: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Ranks(0, 2).check(sampler, learners, tasks)
