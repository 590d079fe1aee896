"""The scoring engine: rewards over rows, in worker processes that can be killed, or here; outcomes for every row."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from concordant.core.errors import RewardError
from concordant.scoring.call import Gate, call_here, call_seed
from concordant.scoring.outcome import Outcome, Rows
from concordant.scoring.plan import Plan, make_plan
from concordant.scoring.reward import Context, Reward
from concordant.scoring.stats import Stats, count
from concordant.scoring.values import said_nothing
from concordant.scoring.workers.pool import Pool
from concordant.scoring.workers.schedule import Ticket

MEMORY = 16384
"""Usual limit on the address space of a worker, in MB."""


class Pending:
    """Scores that are being made; workers go on while the caller does something else."""

    def __init__(self, engine: "Engine", work: Sequence[tuple[Plan, "Ticket | list[list[Outcome]]"]]) -> None:
        self._engine, self._work = engine, work
        self._outcomes: dict[str, list[Outcome]] | None = None
        self.stats: Mapping[str, Stats] = {}
        """Numbers of the pass by reward, once there is a result."""

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        return all(not isinstance(work, Ticket) or work.ended.is_set() for _, work in self._work)

    def result(self) -> dict[str, list[Outcome]]:
        """Wait for the outcomes: by reward, one for each row, in order; for rewards of pairs one for each pair, in the
        order of `all_pairs`, its value the share that the earlier row wins.

        Raises:
            RewardError: if a reward cannot be loaded by a worker, or failed on every row of the engine's first pass.
        """
        if self._outcomes is None:
            called = [work.wait() if isinstance(work, Ticket) else work for _, work in self._work]
            plans = [plan for plan, _ in self._work]
            self._engine._keep(plans, called)
            answers = [plan.answers(one) for plan, one in zip(plans, called, strict=True)]
            self.stats = {
                plan.reward.name: count(said, one)
                for plan, said, one in zip(plans, answers, called, strict=True)
            }
            made = {plan.reward.name: plan.settle(said) for plan, said in zip(plans, answers, strict=True)}
            self._engine._count(self.stats)
            self._engine._judge(made)
            self._outcomes = made
        return self._outcomes


class Engine:
    """Runs rewards.

    Args:
        rewards: what to run; those that are not `inline` run in worker processes.
        workers: worker processes for all of them.
        cache: a `Cache` for outcomes, or the path of one, which the engine then opens and closes; or None.
        seed: of the run; the seed of each call's context comes from it, the context's own, the step and the row.
        memory: limit on the address space of a worker in MB, so that a reward that eats memory harms only itself. 0 is
            none, which a reward that uses CUDA needs.
        log: file to which rewards in workers print; None drops what they print.
        strict: whether a reward that fails on every row of the first pass stops the run; declining to judge is no
            failure. Later passes only record it: a judge that is down for a while does not end a run.

    One pass over rows is `run`, or `submit` and later `result`. An engine with workers is closed by `close`, at the end
    of a `with` block, or with the process.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        workers: int = 2,
        cache: Any = None,
        seed: int = 0,
        *,
        memory: int = MEMORY,
        log: Path | None = None,
        strict: bool = True,
    ) -> None:
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise RewardError(f"two rewards have the same name: {', '.join(names)}; rename one")
        if workers < 1:
            raise RewardError(f"the engine needs at least one worker, got {workers}")
        self.rewards = tuple(rewards)
        self._levels = {reward.name: reward.level for reward in rewards}
        self.seed, self.strict = seed, strict
        self.stats: Mapping[str, Stats] = {}
        """Numbers of all passes so far, by reward."""
        self._gates = {reward.name: Gate(reward.rate) for reward in rewards if reward.inline}
        remote = [reward for reward in rewards if not reward.inline]
        self._places = {reward.name: place for place, reward in enumerate(remote)}
        self.cache = _open(cache) if isinstance(cache, str | Path) else cache
        self._owns_cache = self.cache is not cache
        self._marks = _fingerprints(rewards) if cache is not None else {}
        self._pool = Pool(remote, workers, memory, log) if remote else None
        if self._pool is not None:
            self._finalise = weakref.finalize(self, self._pool.close)

    def submit(self, rows: Rows, context: Context = Context()) -> Pending:
        """Begin a pass: work goes to the workers at once, inline rewards are run before this returns.

        Args:
            rows: what to score.
            context: what rewards with a parameter `context` are told; its seed is added to the engine's.
        """
        context = replace(context, seed=call_seed(self.seed, context.seed))
        plans = [
            make_plan(reward, rows, context, self.cache, self._marks.get(reward.name, b""))
            for reward in self.rewards
        ]
        sent = {plan.reward.name: self._send(plan) for plan in plans if not plan.reward.inline}
        return Pending(self, [(plan, sent.get(plan.reward.name) or self._call(plan)) for plan in plans])

    def _call(self, plan: Plan) -> list[list[Outcome]]:
        return call_here(plan.reward, plan.names, plan.jobs, self._gates[plan.reward.name])

    def _send(self, plan: Plan) -> Ticket:
        assert self._pool is not None
        sizes = [job.size for job in plan.jobs]
        return self._pool.submit(self._places[plan.reward.name], plan.names, plan.payloads, sizes)

    def run(self, rows: Rows, context: Context = Context()) -> dict[str, list[Outcome]]:
        """Score rows: outcomes by reward, one for each row (or pair), in order."""
        return self.submit(rows, context).result()

    def _keep(self, plans: Sequence[Plan], called: Sequence[Sequence[Sequence[Outcome]]]) -> None:
        if self.cache is not None:
            found = [pair for plan, one in zip(plans, called, strict=True) for pair in plan.to_cache(one)]
            if found:
                self.cache.put_many(found)

    def _count(self, stats: Mapping[str, Stats]) -> None:
        self.stats = {name: self.stats.get(name, Stats()) + one for name, one in stats.items()}

    def _judge(self, made: Mapping[str, Sequence[Outcome]]) -> None:
        """Stop a run whose reward cannot work at all."""
        if not self.strict:
            return
        for name, outcomes in made.items():
            failed = [o.reason for o in outcomes if o.value is None and not said_nothing(o.reason)]
            if outcomes and len(failed) == len(outcomes):
                what = "pairs" if self._levels[name] == "pair" else "rollouts"
                raise RewardError(
                    f"reward {name!r} failed on all {len(failed)} {what}; the first: {failed[0]}"
                )
        self.strict = not any(made.values())

    def close(self) -> None:
        """End the workers; work that is not done fails."""
        if self._pool is not None:
            self._finalise()
        if self._owns_cache:
            self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: str | Path) -> Any:
    from concordant.scoring.cache import Cache

    return Cache(path)


def _fingerprints(rewards: Sequence[Reward]) -> dict[str, bytes]:
    from concordant.scoring.keys import fingerprint

    return {reward.name: fingerprint(reward) for reward in rewards if reward.cache}
