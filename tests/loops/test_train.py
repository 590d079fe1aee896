"""The loop's other parts: references, learners, budgets, pools, what a run folder holds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from concordant.core.chain import chain, part, stage
from concordant.core.errors import ConcordantError, ConfigError
from concordant.core.recipe import Arm, Experiment, Reference
from concordant.core.seeds import Progress, Rng
from concordant.core.table import Table
from concordant.experiment import build, check
from concordant.kernels import kl_k3, spread
from concordant.loops.records import as_rows, as_table
from concordant.loops.run import Run
from concordant.loops.train import train
from concordant.loops.update import update
from concordant.objectives import PolicyGradient
from concordant.samplers import HintLadder
from concordant.scoring import LogProb
from concordant.worlds.build import make_policy, make_world
from tests.tiny import make_data, make_model

SETS = ("train.max_new_tokens=6", "train.steps=4", "train.lr=0.01", "train.warmup=0")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("own")
    data, rewards = make_data(folder)
    return {
        "model": str(make_model(folder)),
        "data": data,
        "rewards": (f"{rewards}:digits",),
        "profile": "smoke",
    }


def with_arm(experiment: Experiment, **changes: Any) -> Experiment:
    made = dataclasses.replace(experiment, arm=dataclasses.replace(experiment.arm, **changes))
    check(made)
    return made


def started(experiment: Experiment, folder: Path) -> Run:
    world = make_world(experiment)
    run = Run(experiment, folder, world, make_policy(experiment, world))
    folder.mkdir(parents=True, exist_ok=True)
    run.records.rewind(0)
    return run


def distance(run: Run) -> float:
    own_, other = run.policy.state_dict(), run.reference.state_dict()
    return float(sum((own_[name] - other[name]).abs().sum() for name in own_))


def test_reference_schedules(own: dict[str, Any], tmp_path: Path) -> None:
    base = build("grpo", sets=SETS, **own)
    probes = (LogProb("reference"),)
    run = started(with_arm(base, probes=probes, reference=Reference("fixed")), tmp_path / "fixed")
    start = {name: w.clone() for name, w in run.policy.state_dict().items()}
    run.advance()
    assert all(torch.equal(start[name], w) for name, w in run.reference.state_dict().items())
    assert distance(run) > 0

    run = started(
        with_arm(base, probes=probes, reference=Reference("ema", decay=0.75, every=2)), tmp_path / "ema"
    )
    run.advance()
    assert all(torch.equal(start[name], w) for name, w in run.reference.state_dict().items())
    run.advance()
    policy, reference = run.policy.state_dict(), run.reference.state_dict()
    for name, value in reference.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * policy[name])

    run = started(with_arm(base, probes=probes, reference=Reference("each_table")), tmp_path / "each")
    run.advance()
    before = {name: w.clone() for name, w in run.policy.state_dict().items()}
    run.advance()
    assert all(torch.equal(before[name], w) for name, w in run.reference.state_dict().items())


def test_the_reference_equals_the_policy_at_the_start(own: dict[str, Any], tmp_path: Path) -> None:
    e = with_arm(build("grpo", sets=SETS, **own), probes=(LogProb("reference"),), reference=Reference())
    run = started(e, tmp_path)
    table, _ = run._sample(run.rng)
    table = run._probe(table, Rng())
    torch.testing.assert_close(table["ref_logp"], table["logp"], atol=1e-5, rtol=0)


def test_kl_pulls_rows_without_advantage_towards_the_reference(own: dict[str, Any], tmp_path: Path) -> None:
    objective = PolicyGradient(kl=part(kl_k3), kl_weight=0.1)
    e = with_arm(build("grpo", sets=SETS, **own), objective=objective, reference=Reference())
    lines = []
    run = started(e, tmp_path)
    for _ in range(2):
        lines.append(run.advance())
    assert lines[1]["rows_active"] == lines[1]["rollouts"], "with a KL term every row has force"
    with pytest.raises(ConfigError, match="reads a reference model"):
        with_arm(e, reference=None)


@dataclasses.dataclass(frozen=True)
class MeanCritic:
    """A learner that predicts the running mean of a reward, and trains the policy from the second table on."""

    provides: Any = dataclasses.field(default_factory=lambda: {"value": "b"})

    def build(self, world: Any, policy: Any, rng: Rng) -> "Running":
        return Running()


class Running:
    def __init__(self) -> None:
        self.mean, self.seen, self.calibrated = torch.zeros(()), 0, 0

    def calibrate(self, table: Table) -> None:
        self.calibrated += 1

    def columns(self, table: Table) -> Table:
        return table.with_columns({"value": ("b", self.mean.expand(table.rows))})

    def trains(self, table: Table, progress: Progress) -> tuple[bool, bool]:
        return progress.step > 0, True

    def learn(self, table: Table, progress: Progress) -> dict[str, float]:
        assert "advantage" in table, "learners see the table after the chain"
        self.seen += 1
        self.mean = self.mean + (table["digits"].mean() - self.mean) / self.seen
        return {"value": float(self.mean)}

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "seen": self.seen, "calibrated": self.calibrated}

    def load(self, state: dict[str, Any]) -> None:
        self.mean, self.seen, self.calibrated = state["mean"], state["seen"], state["calibrated"]


def minus(x: Any, value: Any) -> Any:
    return x - value


minus.__annotations__ = {
    "x": spread.__annotations__["x"],
    "value": spread.__annotations__["x"],
    "return": spread.__annotations__["x"],
}


def test_a_learner_writes_columns_learns_and_resumes(own: dict[str, Any], tmp_path: Path) -> None:
    method = chain(gain=stage(minus, x="digits"), advantage=stage(spread, x="gain"))
    e = with_arm(build("grpo", sets=SETS, **own), chain=method, learners=(MeanCritic(),))
    whole = train(e, tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert "grad_norm" not in lines[0], "the first table trains the learner only"
    assert "grad_norm" in lines[1]
    run = started(e, tmp_path / "half")
    run.measure_start()
    run.advance()
    run.advance()
    again = started(e, tmp_path / "half")
    again.load(2, _through_disk(run, tmp_path))
    assert again.learners[0].calibrated == 1
    again.advance()
    again.advance()
    state = again.policy.state_dict()
    from safetensors.torch import load_file

    last = load_file(sorted((tmp_path / "whole" / "state").glob("*.safetensors"))[-1])
    assert all(torch.equal(last[f"policy/{name}"], value) for name, value in state.items())
    assert whole["cost"]["updates"] == 3


def _through_disk(run: Run, folder: Path) -> dict[str, Any]:
    from concordant.loops import checkpoint

    return checkpoint.load(checkpoint.save(folder / "copy", run.step, run.state()))[1]


def test_a_token_budget_ends_a_run_early(own: dict[str, Any], tmp_path: Path) -> None:
    e = build("grpo", sets=(*SETS, "train.steps=50", "train.token_budget=150"), **own)
    summary = train(e, tmp_path)
    assert 0 < summary["cost"]["steps"] < 10
    assert summary["cost"]["tokens"] >= 150


def test_a_pool_of_prompts_is_visited_in_turn(own: dict[str, Any], tmp_path: Path) -> None:
    run = started(build("grpo", sets=(*SETS, "train.pool=6"), **own), tmp_path)
    seen = []
    for step in range(3):
        run.step = step
        seen += [task.id for task in run._tasks()]
    assert seen[:6] == seen[6:]
    assert len(set(seen)) == 6


def test_gradient_that_is_not_finite_stops_before_the_update(own: dict[str, Any], tmp_path: Path) -> None:
    run = started(build("grpo", sets=SETS, **own), tmp_path)
    table, _ = run._sample(run.rng)
    table = table.with_columns({"advantage": ("b s", torch.full(table["mask"].shape, -1e38))})
    before = {name: w.clone() for name, w in run.policy.state_dict().items()}
    with pytest.raises(ConcordantError, match="gradient is not finite"):
        update(run.policy, run.arm.objective, run.optimiser, table.with_columns({"logp": ("b s", table["logp"] - 15)}),
               run.config, run.rng, 0)  # fmt: skip
    assert all(torch.equal(before[name], w) for name, w in run.policy.state_dict().items())


def test_rollouts_on_disk_restore_the_table(own: dict[str, Any], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    train(
        build(
            "gdpo",
            sets=SETS,
            **{**own, "rewards": (*own["rewards"], own["rewards"][0].replace("digits", "correct"))},
        ),
        tmp_path,
    )
    rows = [row for row in pq.read_table(tmp_path / "rollouts.parquet").to_pylist() if row["step"] == 1]
    table = as_table(rows)
    assert table.axes("z") == ("k", "b")
    assert table.axes("advantage") == ("b", "s")
    assert table.fields["answer"][0].isdigit()
    assert {"total", "whitened", "logp", "digits"} <= set(table.names)
    again = as_table(as_rows(table))
    assert all(torch.equal(table[n].nan_to_num(), again[n].nan_to_num()) for n in table.names)


def test_a_sampler_that_needs_the_start_gets_a_reference(own: dict[str, Any]) -> None:
    assert HintLadder(writer="reference").needs_reference
    arm = Arm(chain(advantage=stage(spread, x="digits")), ("digits",), PolicyGradient(), sampler=HintLadder())
    assert not arm.sampler.needs_reference
