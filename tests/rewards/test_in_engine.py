"""Built-in rewards through the scoring engine: hostile answers end, judges are asked again, gold answers hold."""

import time

import pytest

from concordant.rewards import GroupLengthBand, Judge, MathAnswer, exact_answer, math_answer, token_f1
from concordant.scoring import Engine, Rows, as_reward, validate
from tests.rewards.faulty_server import FaultyServer, verdict


def test_an_answer_that_sympy_never_ends_on_is_killed_and_missing():
    completions = [
        r"\boxed{4}",
        r"\boxed{\prod_{k=1}^{9999}(x+k)}",
        r"\boxed{5}",
        r"\boxed{9^{9^{9^{9}}}}",
        "2+2",
    ]
    keys = ["4", "2x+2", "4", "4", "4"]
    with Engine([as_reward(math_answer, timeout=6.0)], workers=2) as engine:
        start = time.perf_counter()
        found = engine.run(Rows({"completion": completions, "answer": keys}))["math_answer"]
        assert time.perf_counter() - start < 30, "one limit of 6 s, and two workers that import sympy"
    assert [outcome.value for outcome in found] == [1.0, None, 0.0, 0.0, 1.0]
    assert found[1].reason == "timed out after 6 s"
    assert found[4].kind == "symbolic"


def test_a_judge_is_asked_again_after_a_transient_error():
    def script(server, request, code):
        return (429, b"{}") if len(server.seen) == 1 else (200, verdict(code, score=8))

    with FaultyServer(script) as server:
        judge = as_reward(Judge(model="m", base_url=server.url), "judge")
        with Engine([judge], workers=1) as engine:
            rows = Rows({"completion": ["fine", ""], "prompt": ["?", "?"], "answer": ["good", "good"]})
            first, empty = engine.run(rows)["judge"]
    assert (first.value, first.attempts, first.kind) == (0.8, 2, "judge")
    assert (empty.value, empty.kind) == (0.0, "empty")
    assert "BEGIN REFERENCE" in server.seen[-1]["messages"][-1]["content"]


def test_a_judge_that_only_fails_is_missing_with_its_reason():
    with FaultyServer(lambda *_: (503, b"{}")) as server:
        judge = as_reward(Judge(model="m", base_url=server.url), "judge", retries=1)
        with Engine([judge], workers=1, strict=False) as engine:
            (outcome,) = engine.run(Rows({"completion": ["fine"]}))["judge"]
    assert outcome.value is None and len(server.seen) == 2
    assert outcome.reason == "raised TransientError: the judge's server answered HTTP 503"


def test_groups_reach_the_group_band():
    rows = Rows({"completion": ["a", "abc", "abcde", "zz"]}, group=[0, 0, 0, 1])
    with Engine([as_reward(GroupLengthBand(unit="characters"), "band")], workers=1) as engine:
        assert [outcome.value for outcome in engine.run(rows)["band"]] == [0.0, -0.5, -1.0, 0.0]


def test_gold_answers_validate_without_a_model():
    gold = ["72", r"so \boxed{\frac{3}{4}}", "#### 1,080", "<answer>(1, 2]</answer>"]
    answers = ["72", r"\frac{3}{4}", "1080", "(1,2]"]
    rewards = [as_reward(MathAnswer(symbolic=False), "maths"), math_answer]
    assert validate(rewards, Rows({"answer": answers}), gold) == []
    found = validate([exact_answer, token_f1], Rows({"answer": ["1/2"]}), ["0.5"])
    assert sorted(failure.reward for failure in found) == ["exact_answer", "token_f1"]


@pytest.mark.parametrize("answer", ["###", "{", ""])
def test_gold_answers_that_say_nothing_do_not_validate(answer):
    (failure,) = validate([math_answer], Rows({"answer": [answer]}), ["4"])
    assert failure.outcome.value is None and "gold answer" in failure.outcome.reason
