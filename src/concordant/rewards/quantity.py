"""Reading numbers exactly, out of hostile text: integers, decimals, powers of ten, percent, fractions, mixed numbers.

Nothing is evaluated. A number is expanded only when it has at most 400 digits; a larger one is recognised as such by
its logarithm, so `9**9**9**9` costs as little as `81`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import log10

from concordant.rewards.latex import normalise_latex

MAX_CHARS = 2_000
MAX_DIGITS = 400
HUGE_DIGITS = 10_000

_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_TEN = r"\s?(?:\\times|\\cdot|[*×·x])\s?10(?:\^|\*\*)(?:\{([-+]?[0-9]+)\}|([-+]?[0-9]+))"
_NUMBER = re.compile(rf"({_PLAIN})(?:[eE]([-+]?[0-9]+)|{_TEN})?")
_FRACTION = re.compile(
    rf"(?:([0-9]+)\s*)?\\frac\{{([-+]?(?:{_PLAIN}))\}}\{{([-+]?(?:{_PLAIN}))\}}"
    rf"|(?:([0-9]+) )?({_PLAIN})/({_PLAIN})"
)
_POWER = re.compile(r"[0-9]+(?:(?:\^|\*\*)\{?[0-9]+)+\}*")
_PERCENT = re.compile(r"(.*?)\s?(?:%|percent)", re.S)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that was read."""

    value: Fraction | None
    """The exact value; None for one that is beyond limits: not zero, and larger than 10^9000 or smaller than
    10^-9000 in size, hence different from every number with a value."""
    percent: bool = False
    """It was written with a percent sign, which `value` includes: 50% is 1/2."""
    decimal: bool = False
    """It was written with a decimal point or an exponent, so it may be rounded."""


def read_quantity(text: str) -> Quantity | None:
    r"""Read one number, in plain writing or LaTeX.

    Understood: signs, thousands separated by commas, `.5`, `1e-3`, `1.5\times10^{3}`, `3/4`, `\frac{3}{4}`,
    `1\frac{1}{2}` and `1 1/2` (mixed), `2^{10}`, `50%`, a currency sign. Not understood: words, units, a decimal
    comma, sums, roots, anything longer than 2,000 characters.

    Returns:
        The number, or None for text that is anything else, and for numbers between 400 and about 10,000 digits, which
        are neither expanded nor provably beyond limits.

    >>> read_quantity("1,234.50").value, read_quantity(r"\frac{-3}{4}").value, read_quantity("1 1/2").value
    (Fraction(2469, 2), Fraction(-3, 4), Fraction(3, 2))
    >>> read_quantity("12.5%")
    Quantity(value=Fraction(1, 8), percent=True, decimal=True)
    >>> read_quantity("9**9**9**9"), read_quantity("5 cm"), read_quantity("1/0")
    (Quantity(value=None, percent=False, decimal=False), None, None)
    """
    if len(text) > MAX_CHARS:
        long = text.strip()
        digits = long.lstrip("+-0") if long.isascii() else ""
        return Quantity(None) if len(digits) > HUGE_DIGITS and digits.isdigit() else None
    text = normalise_latex(text)
    percent = _PERCENT.fullmatch(text)
    if percent:
        text = percent[1].strip()
    text = text.strip("€£¥").strip()
    sign = -1 if text[:1] == "-" else 1
    found = _read(text[1:].lstrip() if text[:1] in ("-", "+") else text)
    if found is None or found.value is None or (sign == 1 and not percent):
        return found
    return Quantity(sign * found.value / (100 if percent else 1), bool(percent), found.decimal)


def _read(text: str) -> Quantity | None:
    """Read an unsigned number without percent sign."""
    if match := _NUMBER.fullmatch(text):
        return _scaled(match[1], match[2] or match[3] or match[4] or "")
    if match := _FRACTION.fullmatch(text):
        whole, over, under = match.group(1, 2, 3) if match[2] else match.group(4, 5, 6)
        return _ratio(whole, over, under)
    if _POWER.fullmatch(text) and text.count("{") == text.count("}"):
        return _tower([int(part) for part in re.findall("[0-9]+", text) if len(part) <= MAX_DIGITS], text)
    return None


def _scaled(digits: str, exponent: str) -> Quantity | None:
    mantissa = digits.replace(",", "").lstrip("0")
    decimal = "." in mantissa or bool(exponent)
    if not mantissa.strip("0."):
        return Quantity(Fraction(0), decimal=decimal)
    if len(mantissa) > MAX_DIGITS:
        return None
    sign, power = exponent[:1] == "-", exponent.lstrip("+-").lstrip("0")
    if len(power) > 8 or int(power or 0) > HUGE_DIGITS:
        return Quantity(None, decimal=True)
    if int(power or 0) > MAX_DIGITS:
        return None
    scale = Fraction(10) ** (-int(power or 0) if sign else int(power or 0))
    return Quantity(Fraction(mantissa) * scale, decimal=decimal)


def _ratio(whole: str | None, over: str, under: str) -> Quantity | None:
    parts = [part.replace(",", "") for part in (over, under)]
    if max(map(len, parts)) > MAX_DIGITS or (whole and (len(whole) > MAX_DIGITS or "." in over + under)):
        return None
    below = Fraction(parts[1])
    if below == 0:
        return None
    return Quantity(int(whole or 0) + Fraction(parts[0]) / below, decimal="." in over + under)


def _tower(parts: list[int], text: str) -> Quantity | None:
    """Evaluate a power tower, from the right, as long as it stays small."""
    if len(parts) != len(re.findall("[0-9]+", text)):
        return None
    value = parts.pop()
    while parts:
        base = parts.pop()
        if base <= 1 or value == 0:
            value = int(base == 1 or value == 0)
            continue
        digits = value * log10(base) if value < 10**15 else float("inf")
        if digits > HUGE_DIGITS:  # what stands below can only make it larger, unless it is 0 or 1
            return Quantity(None) if all(below > 1 for below in parts) else None
        if digits > MAX_DIGITS:
            return None
        value = base**value
    return Quantity(Fraction(value))
