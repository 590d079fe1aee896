"""Rewards for programs."""

import pickle
import time

import pytest

from concordant.core.errors import RewardError
from concordant.rewards.code import CodeChecks, CodeTests, extract_code
from concordant.scoring.reward import TransientError, as_reward
from concordant.scoring.sandbox import Limits, Result, SandboxError, TestResult, set_isolation, shared

LIMITS = Limits(wall_seconds=1.0)
TESTS = [{"stdin": f"{n}", "expected": f"{n * n}"} for n in range(4)]
RIGHT = "First I\n```python\nprint('draft')\n```\nbut better:\n```python\nn = int(input())\nprint(n * n)\n```\nDone."
HALF = "```py\nn = int(input())\nprint(n * n if n < 2 else 0)\n```"
HANG = "```\nn = int(input())\nwhile n == 3: pass\nif n == 2: 1 / 0\nprint(n * n)\n```"

pytestmark = pytest.mark.sandbox


def test_extract_code():
    assert extract_code(RIGHT) == "n = int(input())\nprint(n * n)\n"
    assert extract_code("print(1)") == "print(1)"
    assert extract_code("```python\nx = 1\n```\n```text\nno code\n```") == "x = 1\n"
    assert extract_code("```\na\n```") == "a\n"
    assert extract_code("```python\nunfinished") == "```python\nunfinished"
    assert extract_code("```python\nx = '```'\n```") == "x = '```'\n"
    assert extract_code("  ```python title=a\n  x\n  ```\n```python\ncut") == "  x\n"
    begin = time.monotonic()
    extract_code("```x y\n" * 300_000)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("isolated", [True, False])
def test_share_of_tests(isolated):
    judge = CodeTests(limits=LIMITS, isolated=isolated)
    assert [judge(text, TESTS).score for text in (RIGHT, HALF, HANG, "", "no code")] == [
        1.0,
        0.5,
        0.5,
        0.0,
        0.0,
    ]
    strict = CodeTests(limits=LIMITS, isolated=isolated, all_passed=True)
    assert [strict(text, TESTS).score for text in (RIGHT, HALF, HANG)] == [1.0, 0.0, 0.0]


def test_record():
    verdict = CodeTests(limits=LIMITS)(HANG, TESTS)
    assert verdict.kind == "code"
    assert verdict.detail == {
        "tests": [True, True, False, False],
        "reasons": {
            "2": "exited with code 1: ZeroDivisionError: division by zero",
            "3": "timed out after 1 s",
        },
        "sandbox": "bubblewrap",
    }


def test_checks():
    values = CodeChecks(limits=LIMITS)(HANG, TESTS)
    assert [value.score for value in values] == [1.0, 1.0, 0.0, 0.0]
    assert {value.detail["sandbox"] for value in values} == {"bubblewrap"}
    assert values[3].detail["reason"] == "timed out after 1 s"


def test_the_level_that_was_used_is_recorded():
    set_isolation("none")
    try:
        assert CodeTests(limits=LIMITS)(RIGHT, TESTS).detail["sandbox"] == "none"
        assert CodeChecks(limits=LIMITS)(RIGHT, TESTS)[0].detail["sandbox"] == "none"
    finally:
        set_isolation("bubblewrap")
    assert CodeTests(limits=LIMITS)(RIGHT, TESTS).detail["sandbox"] == "bubblewrap"


def test_missing_only_when_the_sandbox_failed(monkeypatch):
    broken = Result("", "", "broken", "the sandbox failed: the server ended", 0.0)
    fine = Result("1", "", "finished", "", 0.0)
    results = [TestResult(True, "", fine), TestResult(None, broken.reason, broken)]
    monkeypatch.setattr(type(shared(LIMITS)), "run_tests", lambda *a, **k: results)
    with pytest.raises(TransientError, match="the server ended"):
        CodeTests(limits=LIMITS)(RIGHT, TESTS)
    values = CodeChecks(limits=LIMITS)(RIGHT, TESTS)
    assert [value.score for value in values] == [1.0, None]
    assert values[1].detail["reason"] == "the sandbox failed: the server ended"


def test_bad_tests_are_an_error_of_the_data():
    for judge in (CodeTests(), CodeChecks()):
        with pytest.raises(RewardError, match="no tests"):
            judge(RIGHT, [])
        with pytest.raises(SandboxError, match="stdin"):
            judge(RIGHT, [{"input": "1"}])


def test_tolerance_is_for_tests_that_name_none():
    tests = [{"stdin": "", "expected": "0.3"}, {"stdin": "", "expected": "0.3", "tolerance": 1e-17}]
    assert CodeTests(tolerance=1e-6)("print(0.1 + 0.2)", tests).detail["tests"] == [True, False]


def test_options_for_the_engine():
    judge = as_reward(CodeTests(seconds=20))
    assert (judge.level, judge.timeout, judge.style) == ("rollout", 65.0, "fields")
    checks = as_reward(CodeChecks(seconds=20))
    assert (checks.level, checks.timeout) == ("check", 65.0)
    assert pickle.loads(pickle.dumps(checks)) == checks
