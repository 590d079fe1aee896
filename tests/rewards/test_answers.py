"""Exact, numeric and maths answers: values by hand, agreement with math-verify, gold answers, hostile text."""

import logging
import pickle
import random
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concordant.core.errors import RewardError
from concordant.rewards import (
    ExactAnswer,
    MathAnswer,
    NumericAnswer,
    exact_answer,
    extract_answer,
    math_answer,
    numeric_answer,
)
from concordant.rewards.maths import decide
from concordant.scoring.reward import as_reward

WITHOUT_ALGEBRA = MathAnswer(symbolic=False)


def test_numeric_tolerance_is_inclusive_and_exact():
    near = NumericAnswer(rel_tol=0.1)
    assert near("0.9", "1").score == near("1.1", "1").score == 1.0
    assert near("1.10000000000000000001", "1").score == 0.0
    assert NumericAnswer(abs_tol=0.5)("2.5", "2").score == 1.0
    assert numeric_answer("0.3333333333", "1/3").score == 0.0
    assert numeric_answer("0.1", "1/10").score == 1.0
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(RewardError, match="tolerances"):
            NumericAnswer(rel_tol=bad)


def test_percent_either_or_strict():
    strict = NumericAnswer(percent="strict")
    assert numeric_answer("50%", "50").score == numeric_answer("50", r"50\%").score == 1.0
    assert numeric_answer("50%", "0.5").score == strict("50%", "0.5").score == 1.0
    assert strict("50%", "50").score == numeric_answer("0.5", "50").score == 0.0
    assert numeric_answer("5000%", "50%").score == 0.0


def test_answers_without_key_are_missing_and_say_why():
    assert (
        numeric_answer("1", "one").detail["reason"]
        == "the gold answer is not a number that can be read: 'one'"
    )
    assert numeric_answer("1", " ").detail["reason"] == "the gold answer is empty"
    for key in ("###", "{1", "{}}", "?", "$$"):
        for completion in ("5", key):
            verdict = math_answer(completion, key)
            assert verdict.score is None and "gold answer" in verdict.detail["reason"], key
    assert math_answer("5", r"x \frac").detail["reason"] == r"the gold answer cannot be parsed: 'x \\frac'"


def test_no_answer_is_wrong_not_missing():
    for judge in (exact_answer, numeric_answer, math_answer):
        for text in ("", "I do not\nknow", r"\boxed{", r"\boxed{}", "<answer></answer>"):
            assert (judge(text, "5").score, judge(text, "5").kind) == (0.0, "no answer")


def test_exact_answer():
    assert exact_answer(r"\boxed{\left(1,\ 2\right)}", "$(1, 2)$").score == 1.0
    assert exact_answer("paris", "Paris").score == 0.0
    assert ExactAnswer(case=False)("paris", "Paris").score == 1.0
    assert exact_answer("0.5", "1/2").score == 0.0
    assert exact_answer(r"\boxed{" + "1" * 3000 + "}", "1").kind == "too long"
    assert exact_answer(r"\boxed{" + "1" * 3000 + "}", "1" * 3000).score == 1.0


@pytest.mark.parametrize(
    ("completion", "answer", "score", "kind"),
    [
        (r"so \boxed{42}", r"long solution \boxed{42}", 1.0, "exact"),
        ("<answer>0.5</answer>", r"\frac{1}{2}", 1.0, "number"),
        ("0.333333", "1/3", 1.0, "number"),
        ("0.33333", "1/3", 0.0, "number"),
        ("2e-7", "1e-7", 0.0, "number"),
        ("1e3", "1000", 1.0, "number"),
        ("1 1/2", "1.5", 1.0, "number"),
        ("50%", "50", 1.0, "number"),
        ("41", "42", 0.0, "number"),
        ("Evenly", "Evelyn", 0.0, "text"),
        (r"\text{evelyn}", "Evelyn", 1.0, "text"),
        ("5", "Evelyn", 0.0, "text"),
        (r"\text{no}", "yes", 0.0, "text"),
        ("(C)", r"\text{C}", 1.0, "text"),
        ("B", "C", 0.0, "text"),
        ("2x+2", "2(x+1)", 1.0, "symbolic"),
        ("2x+1", "2(x+1)", 0.0, "symbolic"),
        ("x=5", "5", 1.0, "number"),
        (r"5\text{ cm}", "5", 1.0, "symbolic"),
        (r"\sqrt{8}", r"2\sqrt{2}", 1.0, "symbolic"),
        (r"\{2, 1\}", r"\{1,2\}", 1.0, "number"),
        (r"\{2, 2, 1\}", r"\{1,2\}", 1.0, "number"),
        (r"\{2, 3\}", r"\{1,2\}", 0.0, "number"),
        (r"\{0.333333, 1\}", r"\{1,\frac{1}{3}\}", 1.0, "symbolic"),
        ("(2,1)", "(1,2)", 0.0, "number"),
        (r"\left(\frac12, 3\right)", "(0.5,3)", 1.0, "number"),
        ("(1,2,3)", "(1,2)", 0.0, "number"),
        ("[1,2]", "(1,2)", 0.0, "symbolic"),
        ("(1,x)", "(1,2)", 0.0, "symbolic"),
        ("2,1", "1,2", 1.0, "symbolic"),
        ("y=5", "x=5", 0.0, "symbolic"),
        ("bca", "abc", 1.0, "symbolic"),
        ("C=4", "C", 0.0, "symbolic"),
        ("### ###", "x+1", 0.0, "unparsed"),
    ],
)
def test_math_answer(completion, answer, score, kind):
    verdict = math_answer(completion, answer)
    assert (verdict.score, verdict.kind, verdict.confidence) == (score, kind, 1.0)


def number_pairs(count: int) -> list[tuple[str, str]]:
    """Pairs of numbers in random spellings, half of them equal; only spellings that math-verify reads."""
    draw = random.Random(7)

    def spell(value: Fraction) -> str:
        n, d = value.numerator, value.denominator
        forms = [rf"\frac{{{n}}}{{{d}}}", f"{n}/{d}", rf"\dfrac{{{n}}}{{{d}}}"]
        if d == 1:
            forms = [
                str(n),
                f"{n:,}",
                f"{n}.0",
                f"${n}$",
                rf"\left({n}\right)" if n > 0 else str(n),
                rf"{n}^\circ",
            ]
        elif 10**4 % d == 0:
            forms.append(f"{float(value):.4f}")
        return draw.choice(forms)

    pairs = []
    for _ in range(count):
        value = Fraction(draw.randint(-2000, 2000), draw.choice((1, 1, 2, 3, 4, 5, 7, 8, 16)))
        other = (
            value if draw.random() < 0.5 else value + Fraction(draw.choice((-1, 1)), draw.choice((1, 2, 10)))
        )
        pairs.append((spell(value), spell(other)))
    return pairs


def bracketed_pairs(count: int) -> list[tuple[str, str]]:
    """Pairs of points, intervals, sets and named numbers, about half of them equal."""
    draw = random.Random(8)
    forms = ("({},{})", r"\left({}, {}\right)", "[{},{})", r"\{{{},{}\}}", r"\{{{},{},7\}}", "({},{},-1)")
    spellings = ("{}", "{}.0", "{}")

    def spell(form: str, numbers: list[int]) -> str:
        return form.format(*(draw.choice(spellings).format(number) for number in numbers))

    pairs = []
    for _ in range(count):
        numbers = [draw.randint(1, 4), draw.randint(5, 9)]
        others = (
            numbers if draw.random() < 0.5 else draw.choice((numbers[::-1], [numbers[0], numbers[1] + 1]))
        )
        form = draw.choice(forms)
        pairs.append((spell(form, others), spell(form, numbers)))
        pairs.append(
            (draw.choice(("x={}", "{}")).format(others[0]), draw.choice(("x={}", "{}")).format(numbers[0]))
        )
    return pairs


@pytest.mark.parametrize(("make", "count", "least"), [(number_pairs, 400, 350), (bracketed_pairs, 150, 200)])
def test_the_fast_path_agrees_with_math_verify(make, count, least):
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    from math_verify import parse, verify

    decided = 0
    for given_text, key in make(count):
        fast = decide(given_text, key)
        if fast is None:
            continue
        decided += 1
        slow = verify(
            *(parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (key, given_text)),
            timeout_seconds=None,
        )
        assert fast.score == float(slow), (given_text, key)
    assert decided > least


GOLD = [
    "72", "#### 1,080", r"We get \boxed{\frac{\sqrt{3}}{2}}", r"\left(3, \frac{\pi}{2}\right)", "x^2+1", "(C)", "10!",
    r"\text{Evelyn}", r"50\%", "2^{2023}-1", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"[-1, \infty)",
    r"3\frac{1}{5}", r"\emptyset", r"9.8 \text{ m/s}^2", "11_{2}", r"x \in (1,2)",
]  # fmt: skip


@pytest.mark.parametrize("gold", GOLD)
def test_gold_answers_are_worth_one(gold):
    answer = extract_answer(gold)
    for completion in (gold, f"<think>hm</think><answer>{answer}</answer>", rf"It is \boxed{{{answer}}}."):
        assert math_answer(completion, gold).score == 1.0
        assert exact_answer(completion, gold).score == 1.0


def test_hard_questions_are_missing_not_wrong():
    for text in (
        r"\sum_{n=1}^{10^6} 1/n^3",
        "1000000!",
        "((9!)!)!",
        "2^{3^{4^5}}+1",
        "(2^{99999})^2",
        r"\binom{1000000}{9}",
    ):
        verdict = math_answer(rf"\boxed{{{text}}}", "x+5")
        assert verdict.score is None and verdict.detail["reason"].startswith("not decided: "), text
        assert math_answer(text, text).score == 1.0
    assert math_answer("(1+x)^{2023}", "(x+1)^{2023}").score == 1.0, "the same sum"
    for text, key in (("(x-1)^{2023}", "x^2"), ("x^2", r"\left(x-1\right)^{2023}"), ("(x+1)^{3000}-x", "2x")):
        assert math_answer(text, key).detail["reason"] == "not decided: a long expansion"
    assert math_answer("(1+1)^{2023}", "2^{2023}").score == 1.0, "no letters, no expansion"
    assert math_answer("9**9**9**9", "9**9**9**8").score is None, "both are beyond limits"
    assert WITHOUT_ALGEBRA("2x+2", "2(x+1)").detail["reason"] == "not decided without algebra"


HOSTILE = [
    "9**9**9**9", "(" * 100_000 + "1" + ")" * 100_000, "9" * 1_000_000, "1+" * 500_000 + "1", "-" * 1_000_000,
    "{" * 500_000, r"\boxed{" * 100_000, r"\frac{" * 300 + "1" + "}{2}" * 300, "1," * 300_000, " " * 1_000_000,
    "\\" * 1_000_000, "1/" * 900 + "1", "7" * 1_999, "0" * 1_999, "<answer>" * 100_000, "####" * 200_000,
    "x^" * 900 + "2", r"\text{" * 190 + "a" + "}" * 190, "$" * 1_900, "1 " * 950, "^" * 1_900, r"\left" * 380,
    r"\frac{1}" * 240, "!" * 1_900, "5!" * 900, "^1" * 900, r"\sum" * 400, "\x00" * 1_000_000, "\ud800" * 1_000,
]  # fmt: skip


@pytest.mark.parametrize("wrap", ["{}", r"\boxed{{{}}}", "<answer>{}</answer>"])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_decided_or_given_up_at_once(text, wrap):
    completion = wrap.format(text)
    start = time.perf_counter()
    for judge in (exact_answer, numeric_answer, WITHOUT_ALGEBRA):
        assert judge(completion, "5").score in (0.0, None)
    assert time.perf_counter() - start < 5.0, "milliseconds, or a fifth of a second for a megabyte of braces"


def test_a_pattern_that_explodes_is_given_up():
    verdict = ExactAnswer(where=r"(a|aa)+$")("a" * 60 + "b", "a")
    assert verdict.score is None and verdict.detail["reason"] == "the pattern took more than 0.5 s"


@given(st.text(max_size=40), st.text(min_size=1, max_size=20))
def test_any_text_gives_a_verdict(completion, answer):
    for judge in (exact_answer, numeric_answer, WITHOUT_ALGEBRA):
        assert judge(completion, answer).score in (0.0, 1.0, None)


def test_options_and_pickles():
    assert as_reward(math_answer).timeout == as_reward(MathAnswer()).timeout == 5.0
    for judge in (ExactAnswer(), NumericAnswer(0.1), MathAnswer("boxed"), math_answer):
        assert pickle.loads(pickle.dumps(judge)) == judge


def test_nothing_heavy_is_imported_for_easy_answers():
    import subprocess

    code = (
        "import sys; from concordant.rewards import math_answer; assert math_answer('1/2', '0.5').score == 1.0;"
        "print(sorted({'torch', 'sympy', 'numpy', 'openai', 'jsonschema', 'asyncio'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
