"""Finding answers and reading numbers in text, well formed or hostile."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concordant.core.errors import RewardError
from concordant.rewards import boxed_text, extract_answer, normalise_latex, numeric_answer, read_quantity


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", "auto", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", "boxed", r"\{1, 2\}"),
        (r"\boxed {5}", "boxed", "5"),
        (r"\fbox{5}", "auto", "5"),
        (r"\boxed{1} and \boxed{2", "auto", None),
        (r"\boxed{1}", "answer", None),
        (r"<think>\boxed{9}</think><answer>7</answer>", "auto", "7"),
        (r"<answer>\boxed{7}</answer>", "auto", "7"),
        (r"<answer>7", "answer", "7"),
        ("a\n#### 1,000 \nb", "auto", "1,000"),
        ("####", "hash", ""),
        ("one\ntwo", "auto", None),
        ("  42 ", "auto", "42"),
        ("x" * 201, "auto", None),
        ("x" * 201, "whole", "x" * 201),
        ("<answer>a</answer> b", "block", "a"),
        ("a b", "block", "a b"),
        ("Answer: 3. Answer: 4.", r"Answer: (\d+)", "4"),
        ("no", r"Answer: (\d+)", None),
    ],
)
def test_extraction(text, where, found):
    assert extract_answer(text, where) == found


def test_unknown_place_names_the_nearest():
    with pytest.raises(RewardError, match="did you mean 'boxed'"):
        extract_answer("1", "boxd")


@given(st.text(alphabet=r"\boxed{}1", max_size=60))
def test_a_box_balances(text):
    found = boxed_text(text)
    plain = (found or "").replace(r"\\", "").replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-42", -42),
        ("− 42", -42),
        ("+007", 7),
        ("1,234,567", 1234567),
        (r"1{,}234", 1234),
        (r"1\,234", 1234),
        ("12,34", None),
        ("3,14", None),
        ("1_000", None),
        ("٣", None),
        ("0x10", None),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("1e-3", Fraction(1, 1000)),
        ("2.5E+2", 250),
        (r"1.5\times10^{-3}", Fraction(3, 2000)),
        ("1.5 x 10^3", 1500),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("0.5/0.25", 2),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac34", Fraction(3, 4)),
        (r"\frac1{20}", Fraction(1, 20)),
        (r"-\frac{-3}{4}", Fraction(3, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("50%", Fraction(1, 2)),
        (r"12.5\%", Fraction(1, 8)),
        ("50 percent", Fraction(1, 2)),
        (r"\$5", 5),
        ("€5", 5),
        (r"90^\circ", 90),
        ("2^{10}", 1024),
        ("-2^2", -4),
        ("2**3**2", 512),
        ("{2^3}^2", None),
        ("0^0", 1),
        ("0^{5}", 0),
        ("1^{999999999999}", 1),
        ("0e999999999999", 0),
        ("0" * 1000 + "5", 5),
        ("", None),
        (".", None),
        ("-", None),
        ("1 2", None),
        ("5 cm", None),
        ("nan", None),
        ("inf", None),
        ("__import__('os')", None),
        ("9" * 400, 10**400 - 1),
        ("9" * 401, None),
        ("1e400", 10**400),
        ("1e401", None),
    ],
)
def test_read_quantity(text, value):
    found = read_quantity(text)
    assert (None if found is None else found.value) == value


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "9^{9^{9^{9}}}",
        "10^{100000000}",
        "1e99999999999999",
        "-1e-10001",
        "7" * 1_000_000,
        "2^{99999}",
    ],
)
def test_numbers_beyond_limits_are_known_as_such(text):
    found = read_quantity(text)
    assert found is not None and found.value is None
    assert numeric_answer(text, "5").score == 0.0
    assert numeric_answer("5", text).score is None, "a key beyond limits says nothing"


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{n}/{d}", r"\frac{{{n}}}{{{d}}}", "{n} / {d}"]))
def test_fractions_are_exact(value, form):
    found = read_quantity(form.format(n=value.numerator, d=value.denominator))
    assert found is not None and found.value == value


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=6))
def test_decimals_are_exact(value):
    for text in (f"{value:f}", f"{value:,f}", f"{value:E}"):
        found = read_quantity(text)
        assert found is not None and found.value == Fraction(value)


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (r"\left[ 1 ,\; 2 \right)", "[1,2)"),
        (r"\[ x \]", "x"),
        (r"\(x\)", "x"),
        (r"\leftarrow", r"\leftarrow"),
        (r"\begin{matrix}1\\[2pt]2\end{matrix}", r"\begin{matrix}1\\[2pt]2\end{matrix}"),
        (r"\tfrac 1 2", r"\frac{1}{2}"),
        (r"\frac{a}2", r"\frac{a}{2}"),
        (r"\text{ blue  sky }", "blue sky"),
        (r"x - -3.", "x--3"),
        ("a~b", "a b"),
    ],
)
def test_latex_has_one_spelling(text, spelling):
    assert normalise_latex(text) == spelling
