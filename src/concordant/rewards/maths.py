"""Maths answers: what can be decided without algebra is, in microseconds; the rest goes to math-verify."""

import contextlib
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from concordant.core.errors import RewardError
from concordant.rewards.extract import extract_answer
from concordant.rewards.grading import decided, find_answers, missing, readings, too_long
from concordant.rewards.latex import normalise_latex
from concordant.rewards.quantity import Quantity, read_quantity
from concordant.scoring.reward import Verdict, reward

MAX_DEPTH = 50
"""Deepest nesting of brackets in an answer."""
_SYMBOL = re.compile(r"[^\W_]|\\(?:infty|emptyset|varnothing|pi)|[∞∅π]")
_TEXTUAL = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{[A-Za-z][A-Za-z' -]*\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_FUNCTIONS = re.compile(
    r"(?i:\b(?:a|arc)?(?:sin|cos|tan|cot|sec|csc)h?\b|\b(?:log|ln|exp|sqrt|pi|infinity|inf|e)\b)"
)
_NAMED = re.compile(r"([A-Za-z]=)(?!=)")
_BRACKETED = re.compile(r"(\(|\[|\\\{)((?:[^()\[\]\\]|\\[A-Za-z])*)(\)|\]|\\\})")
_CHOICE = re.compile(r"\(?([A-J])\)?")
_HOSTILE: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("an exponent of five or more digits", r"(?:\^|\*\*)[\s{(]*[-+]?[\s{(]*[0-9]{5,}"),
        ("a power tower", r"(?:\^|\*\*)[\s{(]*[-+]?[\s{(]*[0-9]+\s*(?:\^|\*\*)"),
        (
            "a huge factorial",
            r"(?<![0-9])(?:[0-9]{5,}[\s)}]*!|[0-9]{2,}[\s)}]*(?:![\s)}]*){2})|(?:![\s)}]*){3}",
        ),
        ("a long sum or product", r"\\(?:sum|prod)(?=.*(?:[0-9]{5,}|\^\s*\{?\s*[0-9]+\s*\^))"),
        ("a huge binomial", r"(?:\\[dt]?binom|\\choose)(?=.*(?:[0-9]{6,}|\^))"),
    )
)
_POWER_OF_SUM = re.compile(r"\(([^()]*)\)(?:\^|\*\*)\{?[0-9]{4,}")


@reward(timeout=5.0, retries=0)
@dataclass(frozen=True)
class MathAnswer:
    r"""Reward 1.0 when the answer is mathematically equal to the key.

    Decided in this order, the first that applies; `kind` of the verdict says which it was:
    `no answer`, `too long`, `too deep` (0.0, rules on form); `exact` (same text in one LaTeX spelling); `number` (both
    are numbers: exact fractions, and where one is written with a decimal point, equal after rounding to six decimals
    and to a tenth of a percent; points, intervals and sets of numbers likewise, and `x=` may be left away); `text`
    (the key is a choice letter, or words of four letters or more or marked by `\text{}`: same words, case aside);
    `symbolic` (math-verify parses and compares both); `unparsed` (0.0: it could not parse the answer).

    Range: {0, 1}, confidence 1. Missing, with the reason, are: a key that is no answer or that math-verify cannot
    parse (never 1.0 and never 0.0: it says nothing about the completion), and an answer that only a computation without
    bound could decide (power towers, long sums and
    expansions, huge factorials against a key that is no plain number). What is left
    over runs in a killable worker: math-verify's own alarms work in main threads only and are switched off.

    Differs from math-verify: words are compared as words (it multiplies letters, so that `Evelyn` equals `Evenly`);
    `50%` may equal 1/2 and 50; `1e3`, `5.` and `1 1/2` are numbers; small numbers do not become equal by rounding.
    Needs the extra `math` for the last step only. [derived; last step: math-verify, code]

    >>> judge = MathAnswer()
    >>> judge(r"\boxed{0.5}", r"\frac12").score, judge(r"\boxed{9^{9^{9^{9}}}}", "5").score, judge("4", "###").score
    (1.0, 0.0, None)
    """

    where: str = "auto"
    """Where the completion gives its answer, see `extract_answer`."""
    symbolic: bool = True
    """Whether math-verify is asked; False decides without it: whatever it would be asked about is missing."""

    __name__ = "math_answer"

    def __reduce__(self) -> Any:
        """Pickle; see `_revive`."""
        return _revive, (self.where, self.symbolic)

    def __call__(self, completion: str, answer: str) -> Verdict:
        """Judge one completion by its key."""
        found = find_answers(completion, answer, self.where)
        if isinstance(found, Verdict):
            return found
        given, key = found
        if not _plausible(key):
            return missing(f"the gold answer cannot be parsed: {key[:80]!r}")
        verdict = decide(given, key)
        if verdict is not None:
            return replace(verdict, detail={**verdict.detail, "answer": (given or "")[:200]})
        assert given is not None
        for text in (given, key):
            hostile = next((name for name, pattern in _HOSTILE if pattern.search(text)), None)
            if hostile:
                return missing(f"not decided: {hostile}")
        if not self.symbolic:
            return missing("not decided without algebra")
        return _algebra(given, key)


def _revive(where: str, symbolic: bool) -> MathAnswer:
    """Unpickle, with math-verify loaded where it is installed.

    The engine unpickles rewards before it forks its workers: no answer then pays for the import, half a second and more
    on a busy machine, out of its own time limit.
    """
    if symbolic:
        with contextlib.suppress(ImportError):
            import math_verify  # noqa: F401 (for the workers)
    return MathAnswer(where, symbolic)


math_answer = MathAnswer()
"""The answer is mathematically equal to the key."""


def decide(given: str | None, key: str) -> Verdict | None:
    r"""Decide without algebra, or return None where that is not possible.

    >>> decide("0.333333", r"\frac{1}{3}").score, decide(r"\text{yes}", "Yes").score, decide("2x", "x+x")
    (1.0, 1.0, None)
    """
    if given is None:
        return decided(0.0, "no answer")
    if too_long(given, key):
        return decided(0.0, "too long")
    if _depth(given) > max(MAX_DEPTH, _depth(key)):
        return decided(0.0, "too deep")
    a, b = normalise_latex(given), normalise_latex(key)
    if a == b:
        return decided(1.0, "exact")
    a, b = _without_name(a, b)
    number, target = read_quantity(a), read_quantity(b)
    same = _same_number(number, target) if number and target else _same_numbers(a, b)
    if same is not None:
        return decided(float(same), "number")
    return _compare_words(a, b, any(_TEXTUAL.fullmatch(text.strip(" $\n")) for text in (given, key)))


def _without_name(given: str, key: str) -> tuple[str, str]:
    """Take the same `x=` off both sides, or off the one that has it."""
    names = [match[1] if (match := _NAMED.match(text)) else "" for text in (given, key)]
    if names[0] and names[1] and names[0] != names[1]:
        return given, key
    return given.removeprefix(names[0]), key.removeprefix(names[1])


def _same_numbers(given: str, key: str) -> bool | None:
    r"""Whether two points, intervals or sets of numbers are equal; None where one is something else.

    Both must stand in the same brackets; in `\{ \}` the order does not count. Bare lists are left out: `1,234` may
    be one number.
    """
    found, wanted = _BRACKETED.fullmatch(given), _BRACKETED.fullmatch(key)
    if not found or not wanted or found.group(1, 3) != wanted.group(1, 3):
        return None
    pairs = [[read_quantity(part) for part in match[2].split(",")] for match in (found, wanted)]
    numbers = [[one for one in side if one is not None and one.value is not None] for side in pairs]
    if list(map(len, numbers)) != list(map(len, pairs)) or len(pairs[1]) < 2:
        return None
    if found[1] != r"\{":
        return len(pairs[0]) == len(pairs[1]) and all(map(_same_number, *numbers))
    values = [{one.value for one in side} for side in numbers]
    rounded = any(one.decimal or one.percent for side in numbers for one in side)
    return True if values[0] == values[1] else None if rounded else False


def _same_number(given: Quantity, key: Quantity) -> bool | None:
    """Whether two numbers are equal; None when both are beyond limits."""
    if given.value is None and key.value is None:
        return None
    rounded = given.decimal or key.decimal
    return any(a == b or (rounded and _rounded_equal(a, b)) for a, b in readings(given, key, "either"))


def _rounded_equal(a: Fraction, b: Fraction) -> bool:
    """Equal after rounding to six decimals, and within a tenth of a percent, which keeps 1e-7 from being 2e-7."""
    return round(a, 6) == round(b, 6) and abs(a - b) * 1000 <= abs(b)


def _compare_words(given: str, key: str, marked: bool) -> Verdict | None:
    r"""Compare with a key that is words, or the letter of a choice; `marked` by `\text{}` on either side.

    Two or three letters that nobody marked may be a product, `abc`.
    """
    if choice := _CHOICE.fullmatch(key):
        other = _CHOICE.fullmatch(given)
        return None if other is None else decided(float(other[1] == choice[1]), "text")
    if not _WORDS.fullmatch(key) or _FUNCTIONS.search(key):
        return None
    if not marked and sum(map(str.isalpha, key)) < 4 and key.casefold() not in ("yes", "no"):
        return None
    return decided(float(given.casefold() == key.casefold()), "text")


def _plausible(key: str) -> bool:
    """Whether a key can be an answer at all: something besides signs, and brackets that close."""
    counts = [key.count(bracket) - key.count("\\" + bracket) for bracket in "{}"]
    return _SYMBOL.search(key) is not None and counts[0] == counts[1]


def _depth(text: str) -> int:
    """Deepest nesting of brackets of any kind."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _algebra(given: str, key: str) -> Verdict:
    """Ask math-verify, whose alarms are off: the worker is killed when it takes too long."""
    try:
        from math_verify import parse, verify
    except ImportError:
        raise RewardError(
            "comparing these answers needs math-verify: pip install 'concordant[math]'"
        ) from None
    _quieten()

    def read(text: str) -> list[object]:
        boxed = extract_answer(text, "boxed")
        return parse(rf"\boxed{{{boxed or text}}}", parsing_timeout=None)

    gold = read(key)
    if all(isinstance(part, str) for part in gold):
        return missing(f"the gold answer cannot be parsed: {key[:80]!r}")
    target = read(given)
    if all(isinstance(part, str) for part in target):
        return decided(0.0, "unparsed", answer=given[:200])
    if _expands(given) or _expands(key):
        same = any(_same_form(one, other) for one in gold for other in target)
        return (
            decided(1.0, "symbolic", answer=given[:200]) if same else missing("not decided: a long expansion")
        )
    return decided(float(verify(gold, target, timeout_seconds=None)), "symbolic", answer=given[:200])


def _expands(text: str) -> bool:
    """Whether there is a sum with letters to a power of four or more digits: it can be compared, but not simplified."""
    return any(re.search("[A-Za-z]", match[1]) for match in _POWER_OF_SUM.finditer(normalise_latex(text)))


def _same_form(one: Any, other: Any) -> bool:
    """Whether two parsed formulas are the same up to the order of terms and factors."""
    return not isinstance(one, str) and not isinstance(other, str) and bool(one.doit() == other.doit())


def _quieten() -> None:
    """Its warning that the alarms are off is what we want, once for each worker is too often."""
    import logging

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
