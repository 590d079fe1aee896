"""Programs, their tests, and what came of running them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from concordant.scoring.sandbox.limits import SandboxError

Status = Literal["finished", "failed", "timeout", "killed", "output", "broken"]


@dataclass(frozen=True, slots=True)
class Program:
    """Python source and what it reads on stdin."""

    code: str
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class StdioTest:
    """Run the program as `__main__` on `stdin`; what it prints must be `expected`.

    Both texts are split at white space. Two tokens agree when they are equal or, with a `tolerance`, when both are
    decimal numbers with `|a - b| <= tolerance * max(1, |b|)`. The program must end with exit code 0.
    """

    stdin: str
    expected: str
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class CallTest:
    """Import the program, call `function(*args, **kwargs)`; what it returns must be `expected`.

    `function` may be `Class.method`, which is called on `Class()`. Arguments and results travel as JSON: a tuple
    arrives as a list, dictionary keys as strings, and a set or any other object is no answer. See `judge.same` for
    when two values are equal.
    """

    function: str
    args: Sequence[Any] = ()
    expected: Any = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float | None = None


Test = StdioTest | CallTest


@dataclass(frozen=True, slots=True)
class Result:
    """Raw output of one run. All of it was written by the program: believe nothing it says about itself."""

    stdout: str
    stderr: str
    status: Status
    """`finished` (exit code 0), `failed` (any other), `timeout`, `killed` (by a signal), `output` (wrote too much), or
    `broken`: the sandbox failed, not the program."""
    reason: str
    """Empty if and only if `finished`."""
    seconds: float
    """Wall time; where tests share a process, that of the process divided by its tests."""
    value: str = ""
    """JSON of what the function of a `CallTest` returned; empty when it did not return."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """Verdict on one test, made outside the sandbox."""

    __test__ = False  # not a class of tests, whatever pytest thinks

    passed: bool | None
    """None: the sandbox failed, so nothing is known about the program."""
    reason: str
    """Empty if and only if passed."""
    result: Result


def read_tests(value: Any, tolerance: float | None = None) -> list[Test]:
    """Read tests as data sets write them.

    Accepts JSON text of, or directly:
    a list of `{"stdin": ..., "expected": ...}` and `{"function": ..., "args": [...], "expected": ...}`;
    `{"inputs": [...], "outputs": [...]}`, with `"fn_name"` for function tests (APPS, TACO, LiveCodeBench), where
    inputs are argument lists and an output may be wrapped in a list of one, which is taken off.

    >>> read_tests('[{"stdin": "1 2", "expected": "3"}]')
    [StdioTest(stdin='1 2', expected='3', tolerance=None)]
    """
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, Mapping) and "inputs" in value:
        value = _from_columns(value)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise SandboxError(f"tests must be a list, or have inputs and outputs; got {type(value).__name__}")
    return [_read_test(test, tolerance) for test in value]


def _from_columns(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    inputs, outputs, name = value["inputs"], value.get("outputs", ()), value.get("fn_name")
    if len(inputs) != len(outputs):
        raise SandboxError(f"{len(inputs)} inputs, {len(outputs)} outputs: each test needs both")
    if name is None:
        return [{"stdin": _lines(i), "expected": _lines(o)} for i, o in zip(inputs, outputs, strict=True)]
    unwrapped = [o[0] if isinstance(o, list) and len(o) == 1 else o for o in outputs]
    return [{"function": name, "args": i, "expected": o} for i, o in zip(inputs, unwrapped, strict=True)]


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_test(test: Any, tolerance: float | None) -> Test:
    if isinstance(test, StdioTest | CallTest):
        return test
    if not isinstance(test, Mapping):
        raise SandboxError(f"a test must be a mapping, got {type(test).__name__}")
    kind: type[StdioTest] | type[CallTest] = CallTest if "function" in test else StdioTest
    known = {"function", "args", "kwargs", "expected", "tolerance"} if kind is CallTest else set(_STDIO)
    if "expected" not in test or not set(test) <= known or (kind is StdioTest and "stdin" not in test):
        raise SandboxError(
            f"a {kind.__name__} has {', '.join(sorted(known))}; got {', '.join(map(str, test))}"
        )
    return kind(**{"tolerance": tolerance, **test})


_STDIO = ("stdin", "expected", "tolerance")
