"""The verdict: raw output of a program against what was expected. Runs outside the sandbox, on data only."""

import json
import math
import re
from typing import Any

from concordant.scoring.sandbox.programs import CallTest, Result, StdioTest, Test, TestResult

_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?", re.ASCII)


def judge(test: Test, result: Result) -> TestResult:
    """Decide one test. A run that did not finish fails; one where the sandbox broke has no verdict."""
    if result.status == "broken":
        return TestResult(None, result.reason, result)
    if result.status != "finished":
        return TestResult(False, result.reason, result)
    reason = _stdio(test, result.stdout) if isinstance(test, StdioTest) else _call(test, result.value)
    return TestResult(not reason, reason, result)


def _stdio(test: StdioTest, stdout: str) -> str:
    if same_tokens(stdout, test.expected, test.tolerance):
        return ""
    return f"printed {_short(stdout)}, expected {_short(test.expected)}"


def _call(test: CallTest, text: str) -> str:
    if not text:
        return f"{test.function} did not return"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"returned something that cannot be read as JSON: {type(error).__name__}"
    if same(value, test.expected, test.tolerance):
        return ""
    return f"returned {_short(text)}, expected {_short(repr(test.expected))}"


def same_tokens(text: str, expected: str, tolerance: float | None = None) -> bool:
    r"""Whether two texts have the same words, numbers within the tolerance (relative above 1, absolute below).

    >>> same_tokens("1  2\n", "1 2"), same_tokens("0.50", "0.5"), same_tokens("0.50", "0.5", 1e-6)
    (True, False, True)
    """
    ours, theirs = text.split(), expected.split()
    if ours == theirs:
        return True
    if tolerance is None or len(ours) != len(theirs):
        return False
    return all(a == b or _close_words(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))


def _close_words(a: str, b: str, tolerance: float) -> bool:
    if not (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)):
        return False
    return _close(float(a), float(b), tolerance)


def _close(a: float, b: float, tolerance: float) -> bool:
    return math.isfinite(a) and abs(a - b) <= tolerance * max(1.0, abs(b))


def same(value: Any, expected: Any, tolerance: float | None = None) -> bool:
    """Whether a value read from JSON is the expected one.

    Types count: `True` is not 1, 1 is not 1.0, "1" is not 1, None is only None; NaN equals NaN. With a `tolerance`
    an integer and a float may be equal, and numbers must agree to it. A tuple in `expected` stands for a list, and
    its dictionary keys for their JSON strings, as both arrive so. Lists by order and length, dictionaries by keys.
    Deeper than 100 levels is not equal.

    >>> same(1, True), same([1, 2], (1, 2)), same(0.3, 0.1 + 0.2), same(0.3, 0.1 + 0.2, 1e-9)
    (False, True, False, True)
    """
    return _same(value, expected, tolerance, 100)


def _same(value: Any, expected: Any, tolerance: float | None, depth: int) -> bool:
    if depth == 0:
        return False
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(value, list)
            and len(value) == len(expected)
            and all(_same(a, b, tolerance, depth - 1) for a, b in zip(value, expected, strict=True))
        )
    if isinstance(expected, dict):
        keyed = {_key(key): item for key, item in expected.items()}
        return (
            isinstance(value, dict)
            and value.keys() == keyed.keys()
            and all(_same(value[key], item, tolerance, depth - 1) for key, item in keyed.items())
        )
    return _same_scalar(value, expected, tolerance)


def _same_scalar(value: Any, expected: Any, tolerance: float | None) -> bool:
    if isinstance(expected, float) and isinstance(value, float) and math.isnan(expected):
        return math.isnan(value)
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (value, expected))
    if tolerance is not None and numbers:
        try:
            return bool(value == expected) or _close(float(value), float(expected), tolerance)
        except OverflowError:
            return False
    return type(value) is type(expected) and bool(value == expected)


def _key(key: Any) -> str:
    """Spell a dictionary key as JSON does."""
    return key if isinstance(key, str) else json.dumps(key)


def _short(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[:length] + "...")
