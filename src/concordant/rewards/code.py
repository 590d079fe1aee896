"""Rewards for programs: run the completion's code against tests, in a sandbox.

The code is the last fenced Python block of the completion, else the whole of it. A program that crashes, hangs or
prints nothing has failed its tests; a value is missing only where the sandbox itself failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from concordant.core.errors import RewardError
from concordant.scoring.reward import TransientError, Verdict
from concordant.scoring.sandbox import Level, Limits, TestResult, isolation, read_tests, shared

_FENCE = "```"
_PYTHON = ("python", "py", "python3", "")
_MARGIN = 45.0
"""Seconds by which the engine's limit exceeds ours: a sandbox may have to be started, twice."""


def extract_code(completion: str) -> str:
    r"""Return the last closed fenced block that is marked as Python or not marked, else the whole text.

    Takes time linear in the length, whatever a model writes.

    >>> extract_code("So:\n```python\nprint(1)\n```\nDone.")
    'print(1)\n'
    """
    found, language = completion, None
    block: list[str] = []
    for line in completion.splitlines(keepends=True):
        mark = line.strip()
        if language is None:
            if mark.startswith(_FENCE):
                language, block = mark[len(_FENCE) :].strip().partition(" ")[0].lower(), []
        elif mark == _FENCE:
            found, language = ("".join(block) if language in _PYTHON else found), None
        else:
            block.append(line)
    return found


@dataclass(frozen=True)
class _Suite:
    """How to run the tests of a completion."""

    tolerance: float | None = None
    """For tests that name none: how far numbers may be apart, relative above 1. None: not at all."""
    isolated: bool = True
    """A fresh process for each test. False: one process for all tests of a program, several times as fast; they may
    then meet what earlier ones left in modules and in /tmp, but not learn what is expected of them."""
    seconds: float = 60.0
    """For all tests of a completion together; those it leaves no time for fail."""
    limits: Limits = field(default_factory=Limits)
    """For each test."""

    def _results(self, completion: str, tests: Any) -> tuple[list[TestResult], Level]:
        suite = read_tests(tests, self.tolerance)
        if not suite:
            raise RewardError("there are no tests to run")
        level = isolation()
        box = shared(self.limits)
        return box.run_tests(extract_code(completion), suite, self.isolated, self.seconds), level


@dataclass(frozen=True)
class CodeTests(_Suite):
    """Reward a program by the share of its tests that pass, or 1.0 only for all of them.

    `score = passed / tests`, in [0, 1]; with `all_passed` it is 1.0 if `passed == tests`, else 0.0. Every test is run.
    The data column `tests` holds what `read_tests` accepts. Verdict.detail has the verdict of each test (`tests`, in
    order), why the failed ones failed (`reasons`, for the first few) and the isolation (`sandbox`). Missing, and tried
    again, when the sandbox failed; with the reason, when tests cannot be read or there are none.

    Tests stop at no failure (unlike verl's prime_code, which reports the rest as failed).
    """

    all_passed: bool = False

    @property
    def __concordant_reward__(self) -> Mapping[str, Any]:
        """How the engine is to run it."""
        return {"timeout": self.seconds + _MARGIN}

    def __call__(self, completion: str, tests: Any) -> Verdict:
        """Judge one completion."""
        results, level = self._results(completion, tests)
        broken = next((result.reason for result in results if result.passed is None), "")
        if broken:
            raise TransientError(broken)
        passed = [bool(result.passed) for result in results]
        score = float(all(passed)) if self.all_passed else sum(passed) / len(passed)
        return Verdict(score, kind="code", detail=_detail(results, level))


@dataclass(frozen=True)
class CodeChecks(_Suite):
    """Judge every test of a program: 1.0 passed, 0.0 failed, a value for each test in order (level `check`).

    A test is missing when the sandbox failed, and then only. Its crash or its timeout is 0.0.
    """

    @property
    def __concordant_reward__(self) -> Mapping[str, Any]:
        """How the engine is to run it."""
        return {"level": "check", "timeout": self.seconds + _MARGIN}

    def __call__(self, completion: str, tests: Any) -> list[Verdict]:
        """Judge one completion."""
        results, level = self._results(completion, tests)
        return [
            Verdict(
                None if result.passed is None else float(result.passed),
                kind="code",
                detail={"sandbox": level, **({"reason": result.reason} if result.reason else {})},
            )
            for result in results
        ]


def _detail(results: list[TestResult], level: Level, most: int = 3) -> dict[str, Any]:
    """Plain data for the record; reasons of the first few failures only, as suites may have hundreds."""
    failed = [(number, result.reason) for number, result in enumerate(results) if not result.passed]
    return {
        "tests": [bool(result.passed) for result in results],
        "reasons": {str(number): reason for number, reason in failed[:most]},
        "sandbox": level,
    }
