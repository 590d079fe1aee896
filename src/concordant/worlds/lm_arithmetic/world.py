"""The arithmetic world: chain sums and countdown with worked traces, a base of one million parameters,
exact oracles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

from torch import Tensor

from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import address
from concordant.core.table import Table
from concordant.rewards import Short, correct, tag_format
from concordant.worlds.base import Task
from concordant.worlds.lm_arithmetic import columns, hints, meters, problems
from concordant.worlds.lm_arithmetic.problems import MIX, Problem
from concordant.worlds.lm_arithmetic.scorer import StepScorer
from concordant.worlds.lm_arithmetic.traces import assess

BASE = Path(__file__).parent / "base"
_ID = (1 << 62) - 1


@dataclass(frozen=True)
class ArithmeticConfig:
    """Options of the world."""

    levels: tuple[str, ...] = MIX
    """Levels that tasks are drawn from, in equal shares (one named twice has two); `HARD` is the sparse subset."""
    short_limit: int = 28
    """Characters besides tags that the reward `short` allows."""
    test_prompts: int = 512
    """Largest number of test prompts that can be asked for."""

    def __post_init__(self) -> None:
        problems.check_levels(self.levels)


@dataclass(frozen=True)
class ArithmeticWorld:
    """Sums of 2 to 6 terms and countdown games, answered as
    `<think>12+7=19;19-3=16</think><answer>16</answer>`.

    The base policy solves easy levels nearly always and hard ones nearly never, so that many groups tie; it
    inherited from its teacher's corpus right answers with flawed steps, answers that the trace does not
    imply, and bad tags.
    """

    config: ArithmeticConfig = ArithmeticConfig()
    name: str = "lm/arithmetic"

    @property
    def rewards(self) -> Mapping[str, Callable[..., float | None]]:
        """Named reward functions, all in {0, 1}."""
        return {"correct": correct, "format": tag_format, "short": Short(self.config.short_limit)}

    @property
    def columns(self) -> Mapping[str, str]:
        """Columns that `annotate` adds."""
        return {"segment": "b s", "turn": "b n", "answer_span": "b s", "answer_id": "b"}

    @property
    def scorers(self) -> Mapping[str, Callable[[Table], Tensor]]:
        """The step scorer, by the name of the column [b n] it makes."""
        return {"step_score": _step_scorer().score}

    @property
    def hint_tokens(self) -> int:
        """Tokens that suffice for writing three levels of hints."""
        return 40

    @property
    def max_new_tokens(self) -> int:
        """Tokens that suffice for a worked trace of any level."""
        return 56

    def tasks(
        self, split: Literal["train", "test"], seed: int = 0, step: int = 0, count: int = 1
    ) -> list[Task]:
        """Draw tasks; levels take turns, so that any `count` holds nearly equal shares.

        Train tasks are drawn fresh and depend on (seed, step) only: a larger `count` continues a smaller
        one. Test tasks are fixed and share no expression with any train task; `seed` and `step` are ignored
        for them.
        """
        if split == "test":
            return self._test_tasks(count)
        if split != "train":
            raise ConfigError(f"split {split!r} is neither 'train' nor 'test'")
        key = address("train", seed, step)
        order = list(self.config.levels)
        Random(key).shuffle(order)
        return [self._task(order[i % len(order)], address(key, i), test=False) for i in range(count)]

    def _test_tasks(self, count: int) -> list[Task]:
        if count > self.config.test_prompts:
            raise ConfigError(
                f"{count} test prompts were asked for, the world is set to at most "
                f"{self.config.test_prompts}; raise test_prompts or ask for fewer"
            )
        found: dict[int, Task] = {}
        levels, key = self.config.levels, 0
        while len(found) < count:
            task = self._task(levels[len(found) % len(levels)], address("test", key), test=True)
            found.setdefault(task.id, task)
            key += 1
            if key > 200 * count + 1000:
                raise ConfigError(
                    f"only {len(found)} different test prompts exist on levels {levels}; ask for fewer"
                )
        return list(found.values())

    def _task(self, level: str, key: int, *, test: bool) -> Task:
        problem = problems.draw(level, key, test)
        return make_task(problem, problems.word(problem, address(key, "form") % problems.FORMS))

    def policy(self, **options: Any) -> Any:
        """Load the shipped base as an `LMPolicy`."""
        from concordant.policies.lm import LMPolicy

        return LMPolicy.from_pretrained(BASE, **options)

    def step_scorer(self) -> StepScorer:
        """Return the shipped step scorer, loaded once a process."""
        return _step_scorer()

    def annotate(self, table: Table) -> Table:
        """Add `segment` (b s), `turn` (b n), `answer_span` (b s) and `answer_id` (b); see
        `columns.annotate`.
        """
        return columns.annotate(table)

    def evaluate(self, table: Table) -> dict[str, list[float]]:
        """Judge every row exactly; see `meters.evaluate`."""
        return meters.evaluate(table, self.config.short_limit)

    def meters(self, table: Table) -> dict[str, float]:
        """Measure the world's diseases on sampled rows; see `meters.meters`."""
        return meters.meters(table, self.config.short_limit)

    def hint_prompt(self, task: Task) -> str:
        """Return the user message that asks the policy to write hints from the reference solution."""
        return hints.write_hint_request(task.fields["question"], task.fields["solution"])

    def hinted_task(self, task: Task, hint: str) -> Task:
        """Return the same task (same id and fields) with a hint behind the question."""
        return replace(task, prompt=_chat(hints.with_hint(task.fields["question"], hint)))

    def parse_hints(self, text: str) -> dict[int, str] | None:
        """Read hints by level from what the policy wrote; None when there are none."""
        return hints.parse_hints(text)

    def hint_leaks(self, hint: str, answer: str) -> bool:
        """Tell whether a hint contains the answer."""
        return hints.hint_leaks(hint, answer)

    def validate(self) -> list[str]:
        """Check on a sample of every level that reference solutions score 1.0 and that splits are
        disjoint.
        """
        found = list[str]()
        count = 24 * len(self.config.levels)
        train = [task for step in range(2) for task in self.tasks("train", 0, step, count)]
        test = self.tasks("test", count=min(count, self.config.test_prompts))
        shared = {task.fields["problem"] for task in train} & {task.fields["problem"] for task in test}
        found += [f"{problem}: in both splits" for problem in sorted(shared)]
        for task in (*train, *test):
            found += [f"{task.fields['question']}: {what}" for what in _faults(task)]
        return found


@cache
def _step_scorer() -> StepScorer:
    return StepScorer.load(BASE)


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def make_task(problem: Problem, question: str) -> Task:
    """Make a task of a problem and one wording of it.

    Fields: `answer` (the key, integer text), `numbers` (of a countdown, else None), `question`,
    `expression` (the chain, left to right), `problem` (the problem without its wording), `level`,
    `solution` (the reference reasoning), `reference` (a whole reference completion).
    """
    fields = {
        "answer": str(problem.target),
        "numbers": problem.shown if problem.is_countdown else None,
        "question": question,
        "expression": problem.expression,
        "problem": problem.canonical,
        "level": problem.level,
        "solution": problems.solution(problem),
        "reference": problems.completion(problems.solution(problem), problem.answer),
    }
    return Task(address("lm/arithmetic", problem.canonical, question) & _ID, _chat(question), fields)


def _faults(task: Task) -> list[str]:
    """What is wrong with a task's reference completion."""
    fields = task.fields
    text = fields["reference"]
    judged = assess(text, fields["expression"], fields["numbers"])
    checks = {
        "reference answer is not rewarded": correct(text, fields["answer"], fields["numbers"]) == 1.0,
        "reference layout is not rewarded": tag_format(text) == 1.0,
        "reference steps are not valid": judged.steps_valid and judged.verdict.complete,
        "reference answer is not implied by its steps": judged.consistent,
    }
    return [what for what, fine in checks.items() if not fine]


def rows_of(tasks: list[Task], completions: list[list[str]]) -> dict[str, list[Any]]:
    """Return the fields of a table whose rows are the completions of each task, task by task."""
    if len(tasks) != len(completions):
        raise DataError(
            f"{len(tasks)} tasks but {len(completions)} lists of completions; give one list per task"
        )
    repeated = [task for task, texts in zip(tasks, completions, strict=True) for _ in texts]
    names = list(tasks[0].fields) if tasks else []
    fields: dict[str, list[Any]] = {name: [task.fields[name] for task in repeated] for name in names}
    return {**fields, "completion": [text for texts in completions for text in texts]}
