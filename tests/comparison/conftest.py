"""A recipe and summaries that need no training."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from concordant.comparison.jobs import Job, Outcome
from concordant.core.recipe import Claim

os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2] / "src"))


@dataclass
class FakeRecipe:
    slug: str = "fake"
    title: str = "Fake: a method that needs no training"
    world: str = "nowhere"
    kind: str = "system"
    baseline: str = "grpo"
    controls: tuple[str, ...] = ("grpo",)
    claims: tuple[Claim, ...] = (Claim("accuracy", "grpo", margin=0.01, meter="tied", disease=0.3),)
    arms: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def recipe():
    return FakeRecipe()


@pytest.fixture
def outcomes(tmp_path):
    """Two arms on three seeds, the method ahead by about a tenth."""

    def make(method=(0.71, 0.72, 0.74), baseline=(0.60, 0.62, 0.63), tied=0.5):
        made = []
        for arm, values in (("fake", method), ("grpo", baseline)):
            for seed, value in enumerate(values):
                job = Job("fake", arm, seed, "quick", tmp_path)
                if value is None:
                    made.append(Outcome(job, "failed", error="exit code 1; last lines of the log:\nboom"))
                    continue
                summary = {
                    "slug": "fake",
                    "arm": arm,
                    "seed": seed,
                    "profile": "quick",
                    "metrics": {"accuracy": value, "length": 30.0 + seed},
                    "failure_meters": {"tied": tied},
                    "curve": [{"step": 0, "accuracy": 0.5}, {"step": 10, "accuracy": value}],
                    "cost": {"tokens": 100},
                    "wall_seconds": 10.0,
                    "versions": {"torch": "2"},
                }
                made.append(Outcome(job, "ran", summary))
        return made

    return make
