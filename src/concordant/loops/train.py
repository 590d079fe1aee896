"""The training loop, the same for any policy and world: sample, score, probe, chain, update; evaluate, record, save."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from concordant.core.chain import Context
from concordant.core.progress import track
from concordant.core.recipe import Experiment
from concordant.core.seeds import Progress, Rng
from concordant.core.table import Table
from concordant.core.versions import versions
from concordant.loops import checkpoint
from concordant.loops.folder import prepare_folder, resolved
from concordant.loops.numbers import table_numbers
from concordant.loops.records import Records
from concordant.loops.scoring import Scorer
from concordant.loops.update import load_optimiser, optimiser_state, update
from concordant.policies.lm import SamplePlan
from concordant.samplers import Ask, Cost, Once
from concordant.samplers.base import Scored
from concordant.scoring.probes import Models
from concordant.worlds.build import make_policy, make_world

METER_PROMPTS = 64


class Run:
    """One run: its parts, and the state that a checkpoint holds."""

    def __init__(self, experiment: Experiment, folder: Path, world: Any, policy: Any) -> None:
        self.experiment, self.folder = experiment, folder
        self.arm, self.config = experiment.arm, experiment.train
        self.rng = Rng(experiment.seed)
        self.world = world
        self.policy = policy
        self.scorer = Scorer(experiment, world, folder)
        self.rewards = self.scorer.rewards
        self.sampler = self.arm.sampler or Once()
        self.reference: Any = self.policy.snapshot() if self.arm.needs_reference else None
        self.learners = [
            spec.build(self.world, self.policy, self.rng.child("init")) for spec in self.arm.learners
        ]
        self.optimiser = torch.optim.AdamW(
            list(self.policy.parameters()), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self.plan = SamplePlan(self.config.group_size, self.config.max_new_tokens, self.config.temperature)
        self.step, self.updates, self.seconds, self.cost = 0, 0, 0.0, Cost()
        self.chain_state, self.sampler_state = self.arm.chain.init(), self.sampler.init()
        self.curve: list[dict[str, Any]] = []
        self.meters: dict[str, float] = {}
        self.records = Records(folder)

    # ---- state -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs. Random streams are addressed by step, so the step is their state."""
        return {
            "policy": self.policy.state_dict(),
            "optimiser": optimiser_state(self.optimiser),
            "reference": self.reference.state_dict() if self.reference is not None else {},
            "learners": {str(i): learner.state() for i, learner in enumerate(self.learners)},
            "chain": self.chain_state,
            "sampler": {"json": json.dumps(self.sampler_state)},
            "progress": {
                "updates": self.updates,
                "seconds": self.seconds,
                "cost": json.dumps(asdict(self.cost)),
                "curve": json.dumps(self.curve),
                "meters": json.dumps(self.meters),
            },
        }

    def load(self, step: int, tree: dict[str, Any]) -> None:
        """Restore a state."""
        self.step, progress = step, tree["progress"]
        self.policy.load_state_dict(tree["policy"])
        load_optimiser(self.optimiser, tree["optimiser"])
        if self.reference is not None:
            self.reference.load_state_dict(tree["reference"])
        for i, learner in enumerate(self.learners):
            learner.load(tree["learners"][str(i)])
        self.chain_state = tree["chain"] if isinstance(tree["chain"], dict) else {}
        self.sampler_state = json.loads(tree["sampler"]["json"])
        self.updates, self.seconds = progress["updates"], progress["seconds"]
        self.cost = Cost(**json.loads(progress["cost"]))
        self.curve, self.meters = json.loads(progress["curve"]), json.loads(progress["meters"])

    def save(self) -> None:
        """Make everything up to this step durable."""
        self.records.commit(self.step)
        checkpoint.save(self.folder / "state", self.step, self.state())

    # ---- one step ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        budget = self.config.token_budget
        return self.step >= self.config.steps or bool(budget and self.cost.tokens >= budget)

    def advance(self) -> dict[str, Any]:
        """Take one training step."""
        started = time.perf_counter()
        progress = Progress(self.step, self.config.steps)
        rng = self.rng.at(self.step)
        schedule = self.arm.reference
        if schedule is not None and schedule.kind == "each_table" and self.reference is not None:
            self.reference.ema_(self.policy, 0.0)
        table, log = self._sample(rng)
        table = self._credit(table, rng, progress)
        log |= table_numbers(table, self.scorer.names, self.arm.objective)
        log |= self.scorer.numbers()
        log |= self._learn(table, rng, progress)
        self._move_reference()
        self.step += 1
        self.records.add_rollouts(self.step, table, self.config.log_rollouts)
        for ids, outcomes in self.scorer.said:
            self.records.add_scores(self.step, ids, outcomes)
        if self.step % self.config.eval_every == 0 or self.done:
            log["evaluate"] = self.evaluate()
        self.seconds += time.perf_counter() - started
        line = {
            "step": self.step,
            **log,
            "tokens": self.cost.tokens,
            "seconds": round(time.perf_counter() - started, 3),
        }
        self.records.add_metrics(line)
        if self.step % self.config.save_every == 0 or self.done:
            self.save()
        return line

    def _learn(self, table: Table, rng: Rng, progress: Progress) -> dict[str, Any]:
        """Update the policy and the learned parts that this table is for; return what there is to log."""
        log: dict[str, Any] = {}
        roles = [learner.trains(table, progress) for learner in self.learners]
        if all(policy for policy, _ in roles):
            streams = rng.child("update")
            log |= update(
                self.policy, self.arm.objective, self.optimiser, table, self.config, streams, self.updates
            )
            self.updates = int(log.pop("updates_done"))
        for learner, (_, learns) in zip(self.learners, roles, strict=True):
            log |= learner.learn(table, progress) if learns else {}
        return log

    def _credit(self, table: Table, rng: Rng, progress: Progress) -> Table:
        """Add the columns of probes, learners and chain."""
        table = self._probe(table)
        if self.step == 0:
            for learner in self.learners:
                learner.calibrate(table)
        for learner in self.learners:
            table = learner.columns(table)
        table, self.chain_state = self.arm.chain.apply(
            table, Context(rng.child("chain"), progress, self.chain_state)
        )
        self.arm.objective.check(table.schema)
        return table

    def _sample(self, rng: Rng) -> tuple[Table, dict[str, Any]]:
        draws = 0

        def draw(count: int) -> Sequence[Any]:
            nonlocal draws
            draws += 1
            return self.world.tasks("train", self.experiment.seed + draws * 1_000_003, self.step, count)

        self.scorer.at(self.step, self.updates)
        parts = self.experiment.scoring.overlap
        ask = Ask(self._tasks(), self.plan, self.world, draw, self.reference, self.scorer.begin, parts)
        drawn = self.sampler(ask, self.policy, self._score, rng.child("sample"), self.sampler_state)
        self.sampler_state, self.cost = drawn.state, self.cost + drawn.cost
        return self.world.annotate(drawn.rows), dict(drawn.log)

    def _tasks(self) -> Sequence[Any]:
        count, pool = self.config.prompts, self.config.pool
        if not pool:
            return self.world.tasks("train", self.experiment.seed, self.step, count)
        tasks = self.world.tasks("train", self.experiment.seed, 0, pool)
        return [tasks[(self.step * count + i) % pool] for i in range(min(count, pool))]

    def _score(self, table: Table) -> Scored:
        return self.scorer.begin(table)()

    def _probe(self, table: Table) -> Table:
        models = Models(self.policy, self.reference, self.world)
        if self.arm.objective.needs_reference and "ref_logp" not in table:
            with torch.no_grad():
                table = table.with_columns({"ref_logp": ("b s", self.reference.score(table))})
        for probe in self.arm.probes:
            values = probe(models, table)
            table = table.with_columns({name: (probe.columns[name], v) for name, v in values.items()})
        return table

    def _move_reference(self) -> None:
        schedule = self.arm.reference
        if schedule is None or schedule.kind != "ema" or self.reference is None:
            return
        if (self.step + 1) % schedule.every == 0:
            self.reference.ema_(self.policy, schedule.decay)

    # ---- measuring ---------------------------------------------------------------------------------------------

    def evaluate(self, samples: int | None = None) -> dict[str, float]:
        """Sample held-out prompts (the same ones with the same random numbers at every call) and ask the oracle."""
        tasks = self.world.tasks("test", 0, 0, self.config.eval_prompts)
        plan = replace(self.plan, group_size=samples or self.config.eval_samples, temperature=1.0)
        table = self.world.annotate(self.policy.sample(tasks, plan, self.rng.child("evaluate")))
        if getattr(self.world, "judged_by_rewards", False):
            self.scorer.at(self.step, self.updates)
            table = self._score(table).table
        judged = self.world.evaluate(table)
        metrics = {name: sum(v) / len(v) if v else float("nan") for name, v in judged.items()}
        self.curve.append({"step": self.step, **metrics})
        return metrics

    def measure_start(self) -> None:
        """Measure the failure meters and the starting point, before any training."""
        count = min(METER_PROMPTS, self.config.eval_prompts)
        tasks = self.world.tasks("train", self.experiment.seed, -1, count)
        table = self.policy.sample(tasks, replace(self.plan, group_size=8), self.rng.child("meters"))
        self.meters = self.world.meters(self.world.annotate(self._score(table).table))
        self.evaluate()


def train(
    experiment: Experiment, folder: Path, *, fresh: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Run an experiment to the end of its budget, resuming from the newest checkpoint in `folder`; return the summary.

    A finished run is returned as it is. Killing the process at any point and calling again gives the same bits.
    """
    prepare_folder(folder, experiment, fresh)
    summary_file = folder / "summary.json"
    if summary_file.exists():
        return dict(json.loads(summary_file.read_text()))
    world = make_world(experiment)
    run = Run(experiment, folder, world, make_policy(experiment, world))
    try:
        return _go_on(run, progress)
    finally:
        run.scorer.close()


def _go_on(run: Run, progress: bool) -> dict[str, Any]:
    """Take a run up where it stopped, and finish it."""
    experiment, folder = run.experiment, run.folder
    saved = checkpoint.checkpoints(folder / "state")
    if saved:
        run.load(*checkpoint.load(saved[-1]))
    run.records.rewind(run.step)
    if not saved:
        run.measure_start()
        run.save()
    with track(
        f"{experiment.slug} {experiment.arm_name} seed {experiment.seed}", run.config.steps, progress
    ) as bar:
        bar(run.step, {})
        while not run.done:
            bar(run.step, run.advance())
    return finish(run)


def finish(run: Run) -> dict[str, Any]:
    """Evaluate with more samples, write the summary last, so that its presence means the run is complete."""
    metrics = run.evaluate(run.config.final_samples)
    run.curve.pop()
    run.records.finish()
    experiment = run.experiment
    if experiment.policy.model:
        run.policy.save_pretrained(run.folder / "policy")
    summary = {
        "slug": experiment.slug,
        "arm": experiment.arm_name,
        "seed": experiment.seed,
        "profile": experiment.profile,
        "metrics": metrics,
        "failure_meters": run.meters,
        "curve": run.curve,
        "cost": {**asdict(run.cost), "updates": run.updates, "steps": run.step},
        "wall_seconds": round(run.seconds, 2),
        "versions": versions(),
        "config": hashlib.blake2b(json.dumps(resolved(experiment)).encode(), digest_size=8).hexdigest(),
    }
    checkpoint.write_atomically(run.folder / "summary.json", json.dumps(summary, indent=1).encode())
    return summary
