"""Problems of the arithmetic world: drawn from reasoning-gym, split by expression, worded in several short
forms.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from concordant.core.errors import ConfigError, nearest
from concordant.core.seeds import address
from concordant.rewards.numbers import read_expression

CHAINS = ("2x1", "3x1", "2x2", "4x1", "3x2", "2x3", "5x1", "6x1", "4x2", "3x3", "5x2", "4x3")
LEVELS = (*CHAINS, "countdown")
"""`TxD` is a chain of T terms of D digits; `countdown` asks for an expression of three given numbers."""
MIX = (*LEVELS, "2x1", "5x2", "4x3")
"""Levels of the world as it is trained on: the easiest and the hardest have two shares, so that many groups tie."""
EASY = ("2x1", "3x1", "2x2")
HARD = ("6x1", "5x2", "4x3")
_MASK = (1 << 62) - 1
_TEST_SHARE = 8  # one expression in eight is a test expression


@dataclass(frozen=True)
class Problem:
    """A sum of terms from left to right, or a countdown: make `target` from `numbers`."""

    level: str
    numbers: tuple[int, ...]
    operators: tuple[str, ...]
    """One between two neighbouring numbers, in the order of the chain (of the solution, for a countdown)."""
    shown: tuple[int, ...] = ()
    """Countdown only: the numbers in the order of the question."""

    @property
    def is_countdown(self) -> bool:
        """Whether the answer is an expression rather than an integer."""
        return self.level == "countdown"

    @property
    def partials(self) -> tuple[int, ...]:
        """Running results from left to right; the last one is the target."""
        values = [self.numbers[0]]
        for operator, number in zip(self.operators, self.numbers[1:], strict=True):
            values.append(apply(values[-1], operator, number))
        return tuple(values[1:])

    @property
    def target(self) -> int:
        """Value of the whole."""
        return self.partials[-1]

    @property
    def expression(self) -> str:
        """The chain without spaces; brackets keep the order from left to right."""
        text = str(self.numbers[0])
        for operator, number in zip(self.operators, self.numbers[1:], strict=True):
            if operator == "*" and not text.isdigit() and re.search(r"[+-]", text):
                text = f"({text})"
            text = f"{text}{operator}{number}"
        return text

    @property
    def canonical(self) -> str:
        """The problem without its wording; decides the split."""
        return f"{self.target}<{sorted(self.numbers)}" if self.is_countdown else self.expression

    @property
    def answer(self) -> str:
        """Reference content of the answer block."""
        return self.expression if self.is_countdown else str(self.target)

    @property
    def is_test(self) -> bool:
        """Whether this expression belongs to the test split."""
        return address("lm/arithmetic", self.canonical) % _TEST_SHARE == 0


def apply(left: int, operator: str, right: int) -> int:
    """Return `left operator right` for `+`, `-` and `*`."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def check_levels(levels: Sequence[str]) -> tuple[str, ...]:
    """Return the levels as a tuple, or refuse an unknown one."""
    for level in levels:
        if level not in LEVELS:
            raise ConfigError(f"no level {level!r}; {nearest(level, LEVELS)}")
    if not levels:
        raise ConfigError(f"levels is empty; choose from {', '.join(LEVELS)}")
    return tuple(levels)


@lru_cache(maxsize=64)
def _dataset(level: str) -> Any:
    """The reasoning-gym data set of a level; item i is a pure function of i, so i serves as an address."""
    if level == "countdown":
        from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

        config = CountdownConfig(3, 3, 1, 9, 1, 40, operators=("+", "-", "*"), seed=0, size=1)
        return CountdownDataset(config)
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

    terms, digits = (int(part) for part in level.split("x"))
    return ChainSumDataset(ChainSumConfig(terms, terms, digits, digits, seed=0, size=1))


def _from_item(level: str, item: dict[str, Any]) -> Problem | None:
    meta = item["metadata"]
    if level == "countdown":
        return solve_countdown(tuple(meta["numbers"]), int(meta["target"]))
    parts = meta["expression"].split()
    return Problem(level, tuple(int(part) for part in parts[::2]), tuple(parts[1::2]))


def solve_countdown(shown: tuple[int, ...], target: int) -> Problem | None:
    """Find the first chain over the numbers, in the order shown, then permuted, whose value is the target."""
    for numbers in itertools.permutations(shown):
        for operators in itertools.product("+-*", repeat=len(shown) - 1):
            problem = Problem("countdown", numbers, operators, shown)
            if problem.target == target:
                return problem
    return None


def draw(level: str, key: int, test: bool) -> Problem:
    """Return the first problem at or after address `key` that belongs to the split."""
    data = _dataset(level)
    for attempt in range(10_000):
        problem = _from_item(level, data[(address(key, attempt)) & _MASK])
        if problem is not None and problem.is_test == test:
            return problem
    raise ConfigError(f"level {level!r} has no {'test' if test else 'train'} expression")


FORMS = 4


def word(problem: Problem, form: int) -> str:
    """Write the question in one of `FORMS` wordings."""
    if problem.is_countdown:
        numbers = " ".join(map(str, problem.shown))
        return (f"make {problem.target} from {numbers}", f"{numbers} make {problem.target}")[form % 2]
    first, *rest = (str(number) for number in problem.numbers)
    pairs = list(zip(problem.operators, rest, strict=True))
    tight = first + "".join(f"{operator}{number}" for operator, number in pairs)
    return (
        f"{tight}=?",
        first + "".join(f" {operator} {number}" for operator, number in pairs),
        f"sum {first}" + "".join(f" {operator}{number}" for operator, number in pairs),
        tight,
    )[form % FORMS]


def steps(problem: Problem) -> list[str]:
    """Return the reference reasoning, one step per partial result."""
    lefts = (problem.numbers[0], *problem.partials[:-1])
    return [
        f"{left}{operator}{number}={result}"
        for left, operator, number, result in zip(
            lefts, problem.operators, problem.numbers[1:], problem.partials, strict=True
        )
    ]


def solution(problem: Problem) -> str:
    """Return the reference reasoning as text, steps joined by semicolons."""
    return ";".join(steps(problem))


def completion(think: str, answer: str) -> str:
    """Return a well-formed completion."""
    return f"<think>{think}</think><answer>{answer}</answer>"


def value_of(text: str) -> int | None:
    """Return the value of a small expression, or None."""
    read = read_expression(text)
    return None if read is None else read[0]
