"""The programs world: write a program that fits the examples, judged by tests that were not shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from torch import Tensor

from concordant.core.errors import ConfigError, nearest
from concordant.core.seeds import address
from concordant.core.table import Table
from concordant.worlds.base import Task
from concordant.worlds.lm_programs import judging, meters, problems
from concordant.worlds.lm_programs.judging import Judge, PassRate, Solved
from concordant.worlds.lm_programs.language import to_python
from concordant.worlds.lm_programs.problems import DOMAIN, PAIRS, Problem

BASE = Path(__file__).parent / "base"
_ID = (1 << 62) - 1


@dataclass(frozen=True)
class ProgramsConfig:
    """Options of the world."""

    language: Literal["postfix", "python"] = "postfix"
    """What programs are written in: postfix, executed in the process, or Python expressions, run in the sandbox."""
    pairs: int = PAIRS
    """Examples in a prompt; the base has seen prompts of 5."""
    tests: int = 16
    """Tests of a suite, on other inputs than the examples."""
    flat_tests: int = 12
    """Largest number of tests of the flat suite, all on the common path of the hidden program."""
    test_prompts: int = 512
    """Largest number of test prompts that can be asked for."""

    def __post_init__(self) -> None:
        if self.language not in judging.JUDGES:
            raise ConfigError(f"no language {self.language!r}; {nearest(self.language, judging.JUDGES)}")
        if min(self.pairs, self.tests, self.flat_tests) < 1 or self.pairs + self.tests > len(DOMAIN):
            raise ConfigError(
                f"pairs ({self.pairs}), tests ({self.tests}) and flat_tests ({self.flat_tests}) must be at least "
                f"1, and pairs + tests at most {len(DOMAIN)}, the number of inputs"
            )


@dataclass(frozen=True)
class ProgramsWorld:
    """Program synthesis from examples: `3 6 ; 9 12 ; ...` asks for a program such as `x 7 - x 3 + x 2 * if`.

    Hidden programs have branches, and tests are drawn uniformly, so that most of them lie on a program's common path:
    a suite holds many easy tests that say the same and few hard ones.
    """

    config: ProgramsConfig = ProgramsConfig()
    name: str = "lm/programs"

    @property
    def judge(self) -> Judge:
        """Runs completions on their tests."""
        return judging.JUDGES[self.config.language]

    @property
    def rewards(self) -> Mapping[str, Callable[..., float | None]]:
        """Named reward functions in [0, 1]; the results of the single tests are the columns of `annotate`."""
        return {"solved": Solved(self.judge), "pass_rate": PassRate(self.judge)}

    @property
    def columns(self) -> Mapping[str, str]:
        """Columns that `annotate` adds: 0 or 1 for each test of the suite, and of the flat suite."""
        return {"tests": "b u", "flat_tests": "b u"}

    @property
    def scorers(self) -> Mapping[str, Callable[[Table], Tensor]]:
        """No model of this world can be asked."""
        return {}

    @property
    def max_new_tokens(self) -> int:
        """Tokens that suffice for a hidden program."""
        return problems.LENGTH + 2 if self.config.language == "postfix" else 32

    def tasks(
        self, split: Literal["train", "test"], seed: int = 0, step: int = 0, count: int = 1
    ) -> list[Task]:
        """Draw tasks.

        Train tasks are drawn fresh and depend on (seed, step) only: a larger `count` continues a smaller one. Test
        tasks are fixed, and no test program computes the same function as any train program; `seed` and `step` are
        ignored for them.
        """
        if split == "test":
            return self._test_tasks(count)
        if split != "train":
            raise ConfigError(f"split {split!r} is neither 'train' nor 'test'")
        key = address("train", seed, step)
        return [self._task(address(key, i), test=False) for i in range(count)]

    def _test_tasks(self, count: int) -> list[Task]:
        if count > self.config.test_prompts:
            raise ConfigError(
                f"{count} test prompts were asked for, the world is set to at most "
                f"{self.config.test_prompts}; raise test_prompts or ask for fewer"
            )
        found: dict[int, Task] = {}
        for key in range(20 * count + 1000):
            if len(found) == count:
                return list(found.values())
            task = self._task(address("test", key), test=True)
            found.setdefault(task.id, task)
        raise ConfigError(f"only {len(found)} different test prompts exist")

    def _task(self, key: int, *, test: bool) -> Task:
        config, rng = self.config, Random(address("lm/programs", key))
        program = problems.draw(rng, problems.DEPTH, branchy=True, test=test)
        problem = problems.pose(program, rng, pairs=config.pairs, tests=config.tests, flat=config.flat_tests)
        return make_task(problem, config.language)

    def policy(self, **options: Any) -> Any:
        """Load the shipped base as an `LMPolicy`."""
        from concordant.policies.lm import LMPolicy

        return LMPolicy.from_pretrained(BASE, **options)

    def annotate(self, table: Table) -> Table:
        """Add `tests` and `flat_tests`, each (b u); see `judging.annotate`."""
        return judging.annotate(table, self.judge)

    def evaluate(self, table: Table) -> dict[str, list[float]]:
        """Judge every row exactly; see `meters.evaluate`."""
        return meters.evaluate(table, self.judge)

    def meters(self, table: Table) -> dict[str, float]:
        """Measure the world's diseases on sampled rows; see `meters.meters`."""
        return meters.meters(table, self.judge)

    def validate(self) -> list[str]:
        """Check that every reference program passes all its tests, and that splits and suites are disjoint."""
        train = [task for step in range(2) for task in self.tasks("train", 0, step, 100)]
        test = self.tasks("test", count=min(200, self.config.test_prompts))
        shared = {task.fields["function"] for task in train} & {task.fields["function"] for task in test}
        found = [f"function {name}: in both splits" for name in sorted(shared)]
        for task in (*train, *test):
            found += [f"{task.fields['question']}: {what}" for what in self._faults(task)]
        return found

    def _faults(self, task: Task) -> list[str]:
        """What is wrong with a task's reference and suites."""
        fields = task.fields
        text, shown = fields["reference"], {x for x, _ in fields["examples"]}
        suites = {name: fields[name] for name in ("examples", "suite", "flat_suite")}
        results = self.judge.passed([text] * len(suites), list(suites.values()))
        found = [
            f"the reference does not pass its {name}"
            for name, row in zip(suites, results, strict=True)
            if row is None or not all(row)
        ]
        for name in ("suite", "flat_suite"):
            if shown & {x for x, _ in fields[name]}:
                found.append(f"{name} tests an input that is shown")
        return found


def make_task(problem: Problem, language: str) -> Task:
    """Make a task of a problem.

    Fields: `question`; `examples`, `suite` and `flat_suite` (pairs of input and output: shown, tested, and tested with
    equally hard tests); `common` (for each test of the suite, whether it lies on the program's common path);
    `program` (the hidden one, postfix); `reference` (the same in the language of the task); `function` (a hash of
    its outputs).
    """
    program, python = problem.program, language == "python"
    question = problems.question(problem, python=python)

    def pairs(inputs: tuple[int, ...]) -> list[tuple[int, int]]:
        return [(x, program.outputs[x]) for x in inputs]

    fields = {
        "question": question,
        "examples": pairs(problem.shown),
        "suite": pairs(problem.tested),
        "flat_suite": pairs(problem.flat),
        "common": [program.common[x] for x in problem.tested],
        "program": program.text,
        "reference": to_python(program.text) if python else program.text,
        "function": address("lm/programs", program.outputs) & _ID,
    }
    key = address("lm/programs", program.outputs, question, problem.tested) & _ID
    return Task(key, [{"role": "user", "content": question}], fields)
