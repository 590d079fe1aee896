"""Judging a written trace: which steps it has, which are right, and what answer it implies."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from concordant.rewards import answer_text, normalise_answer, read_expression, read_integer, think_text
from concordant.worlds.lm_arithmetic.problems import value_of

_FLAT = re.compile(r"(-?\d{1,9})((?:[-+*]\d{1,9})+)")
_PAIR = re.compile(r"([-+*])(\d{1,9})")
CHECK = "check "


@dataclass(frozen=True)
class Verdict:
    """What a completion's reasoning amounts to."""

    valid: tuple[bool, ...]
    """One truth value a written step, in order."""
    implied: int | None
    """The last result the trace arrives at; None when it has no readable step."""
    complete: bool
    """Whether the steps use up every number of the question, each once."""


def split_steps(think: str) -> list[str]:
    """Split reasoning into its steps: the non-empty parts between semicolons, line breaks and spaces
    trimmed.
    """
    return [part.strip() for part in re.split(r"[;\n]", think) if part.strip()]


def read_step(text: str) -> tuple[int, list[tuple[str, int]], int] | None:
    """Read `12+7=19` (or `12+7-3=16`) as its first operand, the (operator, number) pairs behind it, and the
    result.
    """
    left, equals, right = text.replace(" ", "").partition("=")
    match, result = _FLAT.fullmatch(left), read_integer(right)
    if not equals or match is None or result is None:
        return None
    return int(match[1]), [(operator, int(number)) for operator, number in _PAIR.findall(match[2])], result


def judge(think: str, expression: str, numbers: Sequence[int] | None) -> Verdict:
    """Judge every written step by recomputation.

    A step is right when it starts from the previous written result (the first one from the question), uses
    the numbers of the question (for a chain: the next terms, in order, with their signs) and its arithmetic
    holds. A step without `=` restates the chain and is right when it has its value. `check` repeats a step:
    its arithmetic must hold and give the previous result.

    Args:
        think: the reasoning, without tags.
        expression: the chain of the question; ignored for a countdown.
        numbers: the numbers of a countdown, None for a chain.
    """
    reader = _Countdown(numbers) if numbers is not None else _Chain(expression)
    valid, previous = list[bool](), None
    for text in split_steps(think):
        if text.startswith(CHECK):
            checked = read_step(text[len(CHECK) :])
            valid.append(
                checked is not None and checked[2] == previous and _holds(text[len(CHECK) :], checked[2])
            )
        elif "=" not in text:
            valid.append(previous is None and reader.restates(text))
        else:
            step = read_step(text)
            fits = step is not None and reader.consume(step[0], step[1], previous)
            valid.append(step is not None and fits and _holds(text, step[2]))
            previous = previous if step is None else step[2]
    return Verdict(tuple(valid), previous, reader.finished())


def _holds(text: str, result: int) -> bool:
    return value_of(text.partition("=")[0]) == result


class _Chain:
    """Terms of a chain still to be used."""

    def __init__(self, expression: str) -> None:
        text = "".join(expression.split())
        self.value, self.first = value_of(text), value_of(text[:1] + re.split("[-+*]", text[1:])[0])
        self.terms = [(operator, int(number)) for operator, number in _PAIR.findall(text[1:])]
        self.wrong = False

    def restates(self, text: str) -> bool:
        return self.value is not None and value_of(text) == self.value

    def consume(self, start: int, pairs: list[tuple[str, int]], previous: int | None) -> bool:
        expected, self.terms = self.terms[: len(pairs)], self.terms[len(pairs) :]
        self.wrong |= expected != pairs
        return expected == pairs and start == (self.first if previous is None else previous)

    def finished(self) -> bool:
        return not self.terms and not self.wrong


class _Countdown:
    """Numbers of a countdown still to be used."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.left = Counter(numbers)
        self.wrong = False

    def restates(self, text: str) -> bool:
        return False

    def consume(self, start: int, pairs: list[tuple[str, int]], previous: int | None) -> bool:
        used = Counter(number for _, number in pairs)
        used.update([start] if previous is None else [])
        fits = used <= self.left
        self.left = self.left - used
        self.wrong |= not fits
        return fits and (previous is None or start == previous)

    def finished(self) -> bool:
        return not self.wrong and not self.left


@dataclass(frozen=True)
class Judgement:
    """Oracle facts about one completion."""

    answer: str | None
    steps_valid: bool
    consistent: bool
    verdict: Verdict


def assess(completion: str, expression: str, numbers: Sequence[int] | None) -> Judgement:
    """Assess a whole completion: are all written steps right, and does the trace imply the answer that is
    given?

    A trace without any step has no wrong one, but implies nothing. For a countdown the answer is implied
    when its value is the last result.
    """
    verdict = judge(think_text(completion), expression, numbers)
    answer = normalise_answer(answer_text(completion))
    read = None if answer is None else read_expression(answer)
    consistent = read is not None and verdict.implied is not None and read[0] == verdict.implied
    return Judgement(answer, all(verdict.valid), consistent, verdict)
