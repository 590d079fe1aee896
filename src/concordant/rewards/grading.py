"""Answer rewards that need no algebra: the same text, or the same number."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from concordant.core.errors import RewardError
from concordant.rewards.extract import extract_answer
from concordant.rewards.latex import normalise_latex
from concordant.rewards.patterns import PatternTimeout
from concordant.rewards.quantity import MAX_CHARS, Quantity, read_quantity
from concordant.scoring.reward import Verdict

Percent = Literal["strict", "either"]


def decided(score: float, how: str, **detail: str) -> Verdict:
    """A verdict of a rule that is sure of itself. `how` says which rule it was."""
    return Verdict(score, 1.0, how, detail)


def missing(reason: str) -> Verdict:
    """A verdict that there is nothing to judge by."""
    return Verdict(None, kind="missing", detail={"reason": reason})


def find_answers(completion: str, answer: str, where: str) -> tuple[str | None, str] | Verdict:
    """Return (what the completion answers, the key), or the verdict where there is no key to compare with.

    The key may be the answer itself or a solution that ends in it: a box or `####` is looked for in it, and otherwise
    the whole of it is the answer.
    """
    if not isinstance(answer, str):
        answer = str(answer)
    key = extract_answer(answer) or answer.strip()
    if not key:
        return missing("the gold answer is empty")
    try:
        return extract_answer(completion, where) or None, key
    except PatternTimeout as error:
        return missing(str(error))


def too_long(given: str, key: str) -> bool:
    """Tell whether a text is too long to be that answer: over 2,000 characters and four times the key's length."""
    return len(given) > max(MAX_CHARS, 4 * len(key))


@dataclass(frozen=True)
class ExactAnswer:
    r"""Reward 1.0 when the answer is the key, letter by letter, after both are brought into one LaTeX spelling.

    Range: {0, 1}, confidence 1. Upper and lower case differ unless `case=False`; white space beside signs, `$`,
    `\left`, `\text{}` and the like do not count (`normalise_latex`). `1/2` and `0.5` differ: see `NumericAnswer`.
    No answer is 0.0; an empty key is missing, with its reason. [derived]

    >>> ExactAnswer()("<answer>(1, 2)</answer>", "$(1,2)$").score, ExactAnswer()("blue", "Blue").score
    (1.0, 0.0)
    """

    where: str = "auto"
    """Where the completion gives its answer, see `extract_answer`."""
    case: bool = True
    """Whether upper and lower case differ."""

    def __call__(self, completion: str, answer: str) -> Verdict:
        """Judge one completion by its key."""
        found = find_answers(completion, answer, self.where)
        if isinstance(found, Verdict):
            return found
        given, key = found
        if given is None:
            return decided(0.0, "no answer")
        if too_long(given, key):
            return decided(0.0, "too long")
        a, b = normalise_latex(given), normalise_latex(key)
        return decided(float(a == b if self.case else a.casefold() == b.casefold()), "exact")


@dataclass(frozen=True)
class NumericAnswer:
    r"""Reward 1.0 when the answer is the same number as the key, within a tolerance.

    `|answer - key| <= max(rel_tol * |key|, abs_tol)`, in exact fractions: `0.1` is 1/10, and no rounding error decides.
    Range: {0, 1}, confidence 1. What is understood is listed at `read_quantity`. An answer that is no number, or that
    is beyond limits (`9**9**9**9`), is 0.0, since the key is neither; a key that is no number is missing, with its
    reason. Costs microseconds on any input. [derived]

    >>> judge = NumericAnswer()
    >>> [judge(text, "0.5").score for text in ("1/2", "50%", r"so \boxed{\frac{2}{4}}", "0.51", "9**9**9**9")]
    [1.0, 1.0, 1.0, 0.0, 0.0]
    >>> NumericAnswer(rel_tol=0.01)("3.14", "3.14159").score, judge("half", "0.5").score, judge("1", "one").score
    (1.0, 0.0, None)
    """

    rel_tol: float = 0.0
    abs_tol: float = 0.0
    percent: Percent = "either"
    """`strict`: 50% is the number 1/2. `either`: where just one of the two carries a sign, it may also be left away, so
    that `50%` answers a question for a percentage whose key is `50`."""
    where: str = "auto"
    """Where the completion gives its answer, see `extract_answer`."""

    def __post_init__(self) -> None:
        if not (0 <= self.rel_tol < float("inf") and 0 <= self.abs_tol < float("inf")):
            raise RewardError(
                f"tolerances must be finite and not negative, got {self.rel_tol} and {self.abs_tol}"
            )

    def __call__(self, completion: str, answer: str) -> Verdict:
        """Judge one completion by its key."""
        found = find_answers(completion, answer, self.where)
        if isinstance(found, Verdict):
            return found
        key = read_quantity(found[1])
        if key is None or key.value is None:
            return missing(f"the gold answer is not a number that can be read: {found[1][:80]!r}")
        given = None if found[0] is None else read_quantity(found[0])
        if given is None:
            return decided(0.0, "no answer" if found[0] is None else "no number")

        def near(a: Fraction, b: Fraction) -> bool:
            return abs(a - b) <= max(_fraction(self.rel_tol) * abs(b), _fraction(self.abs_tol))

        return decided(float(any(near(*pair) for pair in readings(given, key, self.percent))), "number")


def readings(given: Quantity, key: Quantity, percent: Percent) -> list[tuple[Fraction, Fraction]]:
    """The pairs of values of which one must agree; none for a number beyond limits, which equals no value."""
    if given.value is None or key.value is None:
        return []
    pairs = [(given.value, key.value)]
    if percent == "either" and given.percent != key.percent:
        pairs.append((given.value * (100 if given.percent else 1), key.value * (100 if key.percent else 1)))
    return pairs


def _fraction(value: float) -> Fraction:
    """The decimal number that was written in the options, not its binary neighbour: 0.01 is 1/100."""
    return Fraction(str(value))


def exact_answer(completion: str, answer: str) -> Verdict:
    """`ExactAnswer()`: the answer is the key, letter by letter.

    >>> exact_answer("<answer>Paris</answer>", "Paris").score
    1.0
    """
    return ExactAnswer()(completion, answer)


def numeric_answer(completion: str, answer: str) -> Verdict:
    r"""`NumericAnswer()`: the answer is exactly the number of the key, however both are written.

    >>> numeric_answer(r"\boxed{1{,}200}", "#### 1200").score
    1.0
    """
    return NumericAnswer()(completion, answer)
