"""A result as a comparison writes it, and a run folder with stored rollouts."""

import json

import pytest
import torch

from concordant.core.chain import Context
from concordant.core.config import plain
from concordant.core.table import Table
from concordant.experiment import build
from concordant.loops.records import Records

LEFT_OUT = {"part": "chain", "stage": "whitened", "what": "stage", "before": "batch_zscore", "after": None}


def claim(verdict="supported", **changed):
    return {
        "metric": "accuracy",
        "arm": "gdpo",
        "versus": "grpo",
        "direction": "higher",
        "margin": 0.01,
        "difference": 0.04,
        "interval": [0.02, 0.06],
        "per_seed": [0.03, 0.05],
        "verdict": verdict,
        "reason": "the interval excludes zero",
        "refuted_by": "GRPO reaches the same",
        **changed,
    }


@pytest.fixture
def result():
    return {
        "slug": "gdpo",
        "title": "GDPO: <each> reward & its own scale",
        "world": "lm/arithmetic",
        "profile": "quick",
        "seeds": [0, 1],
        "arms": {
            "gdpo": {"accuracy": [0.7, 0.72], "length": [31.0, 33.0]},
            "grpo": {"accuracy": [0.67, None], "length": [30.0, None]},
        },
        "claims": [
            claim(),
            claim("refuted", metric="length", direction="lower"),
            claim("inconclusive", interval=None, difference=None, per_seed=[]),
        ],
        "failure_meters": {"tied_groups": 0.46},
        "failures": [{"arm": "grpo", "seed": 1, "error": "exit code 1; <boom>"}],
        "wall_seconds": 120.0,
        "versions": {"torch": "2.13.0"},
        "machine": {"cores": 2},
        "measured": "2026-01-01T00:00:00+00:00",
        "baseline": "grpo",
        "controls": [],
        "cost": {},
        "curves": {
            arm: [[{"step": 0, "accuracy": 0.5}, {"step": 10, "accuracy": 0.5 + gain}], []]
            for arm, gain in (("gdpo", 0.2), ("grpo", 0.17))
        },
        "differences": {"gdpo": [], "grpo": [LEFT_OUT]},
        "settings": {"gdpo": {"train": {"steps": 10}}},
        "revision": "abc",
        "command": "concordant compare gdpo",
    }


@pytest.fixture
def make_run(tmp_path):
    """Write the run folder of a recipe's arm with four stored rollouts a step, as training would."""

    def make(name="seed0", steps=(1, 2), completions=("4", "<b>5</b>", "4", "none")):
        folder = tmp_path / "gdpo" / "gdpo" / name
        folder.mkdir(parents=True)
        experiment = build("gdpo", profile="smoke")
        (folder / "config.json").write_text(json.dumps(plain(experiment)))
        (folder / "summary.json").write_text(
            json.dumps(
                {
                    "slug": "gdpo",
                    "arm": "gdpo",
                    "seed": 0,
                    "profile": "smoke",
                    "metrics": {"accuracy": 0.5},
                    "curve": [{"step": 0, "accuracy": 0.5}],
                    "wall_seconds": 1.0,
                }
            )
        )
        records = Records(folder)
        records.rewind(0)
        for step in steps:
            made = experiment.arm.chain.run(table(completions, step), Context())
            records.add_rollouts(step, made, 100)
            records.commit(step)
        records.finish()
        return folder

    return make


def table(completions, step):
    rows = len(completions)
    reward = torch.tensor([1.0, 0.0, 1.0, 0.0])[:rows]
    return Table.of(
        {
            "id": ("b", torch.arange(rows) + 100 * step),
            "group": ("b", torch.tensor([0, 0, 1, 1])[:rows]),
            "mask": ("b s", torch.tensor([[True, True, False]] * rows)),
            "keep": ("b", torch.ones(rows, dtype=torch.bool)),
            "correct": ("b", reward),
            "format": ("b", torch.ones(rows)),
            "short": ("b", torch.tensor([0.0, 1.0, float("nan"), 1.0])[:rows]),
        },
        fields={"prompt": [f"step {step}: 2 + 2 = "] * rows, "completion": list(completions)},
    )
