"""Run what a policy wrote on the tests of its task: the rewards of the world and the columns they come from."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from concordant.core.errors import DataError
from concordant.core.table import Table
from concordant.scoring.reward import reward
from concordant.worlds.lm_programs.language import read, run

Suite = Sequence[Sequence[int]]
"""Tests as pairs of input and expected output."""


class Judge(Protocol):
    """Runs completions on suites."""

    def passed(self, completions: Sequence[str], suites: Sequence[Suite]) -> list[tuple[float, ...] | None]:
        """Return 1.0 or 0.0 for each test of each row (all of them are run), None where no verdict was reached."""
        ...

    def is_program(self, completion: str) -> bool:
        """Tell whether a completion is a program at all."""
        ...


@dataclass(frozen=True)
class Postfix:
    """Judge of postfix programs: executes them in this process, which is safe because they cannot loop or grow."""

    def passed(self, completions: Sequence[str], suites: Sequence[Suite]) -> list[tuple[float, ...] | None]:
        """Execute every program on every input of its suite."""
        return [passed(text, suite) for text, suite in zip(completions, suites, strict=True)]

    def is_program(self, completion: str) -> bool:
        """Tell whether a completion is a well-formed postfix program."""
        return read(completion) is not None


def passed(completion: str, suite: Suite) -> tuple[float, ...]:
    """Return 1.0 for each test that a postfix program passes, 0.0 for the others (wrong, failed, no program).

    >>> passed("x 2 *", [(1, 2), (3, 9)])
    (1.0, 0.0)
    """
    _check(suite)
    values = run(completion, [x for x, _ in suite])
    return tuple(
        float(value is not None and value == wanted) for value, (_, wanted) in zip(values, suite, strict=True)
    )


def _check(suite: Suite) -> None:
    if not suite:
        raise DataError("a task has no test; give every prompt a suite of at least one")


@dataclass(frozen=True)
class Python:
    """Judge of Python expressions in `x`: each is the body of a function that the sandbox calls on every input."""

    seconds: float = 2.0
    """Bound on one test."""

    def passed(self, completions: Sequence[str], suites: Sequence[Suite]) -> list[tuple[float, ...] | None]:
        """Run every program on every test of its suite, in a process of its own without network and files."""
        from concordant.scoring.sandbox import CallTest, Limits, shared

        sandbox, rows = shared(Limits(wall_seconds=self.seconds)), list[tuple[float, ...] | None]()
        for text, suite in zip(completions, suites, strict=True):
            _check(suite)
            tests = [CallTest("f", [x], wanted) for x, wanted in suite]
            verdicts = [result.passed for result in sandbox.run_tests(_function(text), tests, isolated=False)]
            rows.append(None if None in verdicts else tuple(float(bool(verdict)) for verdict in verdicts))
        return rows

    def is_program(self, completion: str) -> bool:
        """Tell whether a completion parses as an expression; it is not evaluated for this."""
        try:
            ast.parse(completion, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True


def _function(expression: str) -> str:
    return f"def f(x):\n    return {expression}\n"


JUDGES: dict[str, Judge] = {"postfix": Postfix(), "python": Python()}


@reward(inline=True)
@dataclass(frozen=True)
class Solved:
    """Reward: 1.0 if the program passes every test of its suite, else 0.0."""

    judge: Judge

    def __call__(self, completion: str, suite: Suite) -> float | None:
        """Judge one completion; None where no verdict was reached."""
        (results,) = self.judge.passed([completion], [suite])
        return None if results is None else float(all(results))


@reward(inline=True)
@dataclass(frozen=True)
class PassRate:
    """Reward: the share of the suite that the program passes."""

    judge: Judge

    def __call__(self, completion: str, suite: Suite) -> float | None:
        """Judge one completion; None where no verdict was reached."""
        (results,) = self.judge.passed([completion], [suite])
        return None if results is None else sum(results) / len(results)


def annotate(table: Table, judge: Judge) -> Table:
    """Add the columns `tests` and `flat_tests`, each [b u]: 0 or 1 for each test of the suite, of the flat suite.

    Suites of different size are padded with missing (NaN), and a row without a verdict is missing as a whole.
    """
    texts = table.fields["completion"]
    suite, flat = table.fields["suite"], table.fields["flat_suite"]
    for question, *both in zip(table.fields["question"], suite, flat, strict=True):
        if not all(both):
            raise DataError(f"the task {question!r} has no test; give every prompt a suite of at least one")
    tests, flat_tests = pad(judge.passed(texts, suite), suite), pad(judge.passed(texts, flat), flat)
    return table.with_columns({"tests": ("b u", tests), "flat_tests": ("b u", flat_tests)})


def pad(results: Sequence[tuple[float, ...] | None], suites: Sequence[Suite]) -> Tensor:
    """Return results as float32 (b u), NaN outside a suite and in rows without a verdict."""
    width = max((len(suite) for suite in suites), default=0)
    rows: list[Any] = [
        [*(given if given is not None else [torch.nan] * len(suite)), *[torch.nan] * (width - len(suite))]
        for given, suite in zip(results, suites, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), width)
