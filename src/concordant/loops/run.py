"""One run, the same for any policy and world: sample, score, probe, chain, update; evaluate, record, save."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from concordant.core.chain import Context
from concordant.core.recipe import Experiment
from concordant.core.seeds import Progress, Rng
from concordant.core.table import Table
from concordant.loops import checkpoint
from concordant.loops.numbers import table_numbers
from concordant.loops.ranks import Ranks
from concordant.loops.records import Records
from concordant.loops.samples import save_samples
from concordant.loops.scoring import Scorer
from concordant.loops.update import load_optimiser, optimiser_state, update
from concordant.samplers import Ask, Cost, Once
from concordant.samplers.base import Scored
from concordant.scoring.probes import Models

METER_PROMPTS = 64


class Run:
    """One run: its parts, and the state that a checkpoint holds."""

    def __init__(
        self, experiment: Experiment, folder: Path, world: Any, policy: Any, ranks: Ranks | None = None
    ) -> None:
        self.experiment, self.folder, self.ranks = experiment, folder, ranks or Ranks()
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
        self.ranks.check(self.sampler, self.learners, self.config.prompts)
        self.optimiser = torch.optim.AdamW(
            list(self.policy.parameters()), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self.plan = policy.plan(self.config)
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
        if self.ranks.first:
            self.records.commit(self.step)
            checkpoint.save(self.folder / "state", self.step, self.state())
        self.ranks.wait()

    # ---- one step ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        config, cost = self.config, self.cost
        limits = (
            (config.token_budget, cost.tokens),
            (config.evaluation_budget, cost.evaluations),
            (config.reward_budget, cost.reward_calls),
        )
        return self.step >= config.steps or any(limit and spent >= limit for limit, spent in limits)

    def advance(self) -> dict[str, Any]:
        """Take one training step."""
        started = time.perf_counter()
        progress = Progress(self.step, self.config.steps)
        rng = self.rng.at(self.step)
        schedule = self.arm.reference
        if schedule is not None and schedule.kind == "each_table" and self.reference is not None:
            self.reference.ema_(self.policy, 0.0)
        table, log = self._sample(rng)
        table, whole = self._credit(table, rng, progress)
        log |= table_numbers(whole, self.scorer.names, self.arm.objective)
        log |= self.scorer.numbers()
        log |= self._learn(table, whole, rng, progress)
        self._move_reference()
        self.step += 1
        if self.ranks.first:
            self._record(table)
        if self.step % self.config.eval_every == 0 or self.done:
            log["evaluate"] = self.evaluate()
        self.seconds += time.perf_counter() - started
        line = {
            "step": self.step,
            **log,
            **{name: getattr(self.cost, name) for name in ("tokens", "reward_calls", "evaluations")},
            "seconds": round(time.perf_counter() - started, 3),
        }
        if self.ranks.first:
            self.records.add_metrics(line)
        if self.step % self.config.save_every == 0 or self.done:
            self.save()
        return line

    def _record(self, table: Table) -> None:
        self.records.add_rollouts(self.step, table, self.config.log_rollouts)
        for ids, outcomes in self.scorer.said:
            self.records.add_scores(self.step, ids, outcomes)

    def _learn(self, table: Table, whole: Table, rng: Rng, progress: Progress) -> dict[str, Any]:
        """Update the policy and the learned parts that this table is for; return what there is to log."""
        log: dict[str, Any] = {}
        roles = [learner.trains(table, progress) for learner in self.learners]
        if all(policy for policy, _ in roles):
            streams = rng.child("update")
            log |= update(
                self.policy, self.arm.objective, self.optimiser, table, self.config, streams, self.updates,
                self.ranks, whole,
            )  # fmt: skip
            self.updates = int(log.pop("updates_done"))
        for learner, (_, learns) in zip(self.learners, roles, strict=True):
            log |= learner.learn(table, progress) if learns else {}
        return log

    def _credit(self, table: Table, rng: Rng, progress: Progress) -> tuple[Table, Table]:
        """Add the columns of probes, learners and chain; return this process's rows, and those of all."""
        table = self._probe(table, rng.child("probes"))
        if self.step == 0:
            for learner in self.learners:
                learner.calibrate(table)
        for learner in self.learners:
            table = learner.columns(table)
        context = Context(rng.child("chain"), progress, self.chain_state)
        whole, self.chain_state = self.arm.chain.apply(self.ranks.gather(table), context)
        table = self.ranks.own(whole, table)
        self.arm.objective.check(table.schema)
        return table, whole

    def _sample(self, rng: Rng) -> tuple[Table, dict[str, Any]]:
        draws = 0

        def draw(count: int) -> Sequence[Any]:
            nonlocal draws
            draws += 1
            return self.world.tasks("train", self.experiment.seed + draws * 1_000_003, self.step, count)

        self.scorer.at(self.step, self.updates)
        parts = self.experiment.scoring.overlap
        tasks = self.ranks.share(self._tasks())
        first = self.ranks.rank * len(tasks) * self.plan.group_size
        ask = Ask(tasks, self.plan, self.world, draw, self.reference, self.scorer.begin, parts, first)
        drawn = self.sampler(ask, self.policy, self._score, rng.child("sample"), self.sampler_state)
        self.sampler_state, self.cost = drawn.state, self.cost + self.ranks.total(drawn.cost)
        return self.world.annotate(drawn.rows), dict(drawn.log)

    def _tasks(self) -> Sequence[Any]:
        count, pool = self.config.prompts, self.config.pool
        if not pool:
            return self.world.tasks("train", self.experiment.seed, self.step, count)
        tasks = self.world.tasks("train", self.experiment.seed, 0, pool)
        return [tasks[(self.step * count + i) % pool] for i in range(min(count, pool))]

    def _score(self, table: Table) -> Scored:
        return self.scorer.begin(table)()

    def _probe(self, table: Table, rng: Rng) -> Table:
        models = Models(self.policy, self.reference, self.world, rng)
        asked = {n: axes for n, axes in self.arm.objective.reference_columns.items() if n not in table}
        if asked:
            said = self.reference.scores(table, [name.removeprefix("ref_") for name in asked])
            table = table.with_columns({n: (axes, said[n.removeprefix("ref_")]) for n, axes in asked.items()})
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
        """Sample held-out prompts (the same ones with the same random numbers at every call) and ask the oracle.

        Only the first process of a run does; the others return nothing.
        """
        if not self.ranks.first:
            return {}
        tasks = self.world.tasks("test", 0, 0, self.config.eval_prompts)
        plan = self.policy.evaluation_plan(self.config, samples or self.config.eval_samples)
        table = self.world.annotate(self.policy.sample(tasks, plan, self.rng.child("evaluate")))
        if getattr(self.world, "judged_by_rewards", False):
            self.scorer.at(self.step, self.updates)
            table = self._score(table).table
        judged = self.world.evaluate(table)
        metrics = {name: sum(v) / len(v) if v else float("nan") for name, v in judged.items()}
        self.curve.append({"step": self.step, **metrics})
        if self.step == 0 or self.done:
            save_samples(self.folder, self.step, table)
        return metrics

    def measure_start(self) -> None:
        """Measure the failure meters and the starting point, before any training."""
        if not self.ranks.first:
            return
        count = min(METER_PROMPTS, self.config.eval_prompts)
        tasks = self.world.tasks("train", self.experiment.seed, -1, count)
        table = self.policy.sample(tasks, replace(self.plan, group_size=8), self.rng.child("meters"))
        self.meters = self.world.meters(self.world.annotate(self._score(table).table))
        self.evaluate()
