"""Scoring in a run: one engine for all of it, and what each step's scores took."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from concordant.core.recipe import Experiment
from concordant.core.table import Table
from concordant.samplers.base import Scored
from concordant.scoring.engine import Engine
from concordant.scoring.outcome import Outcome
from concordant.scoring.pairs import row_ids
from concordant.scoring.reward import Context
from concordant.scoring.scores import begin
from concordant.scoring.stats import Stats
from concordant.worlds.build import make_rewards

_COUNTS = ("calls", "attempts", "repeated", "cached")


class Scorer:
    """The engine of a run and its rewards; what workers print goes to `rewards.log` in the run folder."""

    def __init__(self, experiment: Experiment, world: Any, folder: Path) -> None:
        options = experiment.scoring
        self.rewards = make_rewards(experiment, world)
        self.engine = Engine(self.rewards, options.workers, options.cache or None, experiment.seed,
                             memory=options.memory, log=folder / "rewards.log")  # fmt: skip
        self.total = experiment.train.steps
        self.step, self.version = 0, 0
        self.stats: dict[str, Stats] = {}
        self.said: list[tuple[list[int], Mapping[str, Sequence[Outcome]]]] = []

    @property
    def names(self) -> list[str]:
        """Names of the rewards."""
        return [reward.name for reward in self.rewards]

    def at(self, step: int, version: int) -> None:
        """Begin to count for a step.

        Args:
            step: of the run.
            version: updates that the policy has had.
        """
        self.step, self.version, self.stats, self.said = step, version, {}, []

    def begin(self, table: Table) -> Callable[[], Scored]:
        """Begin to score; return a function that waits for the scores."""
        context = Context(self.step, self.total, policy_version=self.version)
        wait = begin(table, self.rewards, engine=self.engine, context=context)

        def finish() -> Scored:
            scores = wait()
            for name, stats in scores.stats.items():
                self.stats[name] = self.stats.get(name, Stats()) + stats
            pairs = {r.name: scores.outcomes[r.name] for r in self.rewards if r.level == "pair"}
            alone = {name: said for name, said in scores.outcomes.items() if name not in pairs}
            self.said.append((table["id"].tolist(), alone))
            self.said += [(row_ids(said), {name: said}) for name, said in pairs.items()]
            return Scored(scores.table, scores.calls)

        return finish

    def numbers(self) -> dict[str, dict[str, Any]]:
        """What scoring took since `at`, by reward: calls, attempts, rows that shared a call or came from the cache; the
        commonest reasons of pairs without a verdict, which no row carries; and seconds of all calls, by themselves
        because they differ from run to run.
        """
        lost = {
            f"{r.name}: {why}": count
            for r in self.rewards
            if r.level == "pair" and r.name in self.stats
            for why, count in self.stats[r.name].missing.items()
        }
        return {
            "scores": {n: {count: getattr(one, count) for count in _COUNTS} for n, one in self.stats.items()},
            **({"missing_pairs": dict(Counter(lost).most_common(5))} if lost else {}),
            "scoring_seconds": {name: round(one.seconds, 6) for name, one in self.stats.items()},
        }

    def close(self) -> None:
        """End the workers."""
        self.engine.close()
