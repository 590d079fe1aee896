"""Problems of the programs world: a hidden random program, examples of it to show, and tests to keep back."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

from concordant.core.errors import ConfigError
from concordant.core.seeds import address
from concordant.worlds.lm_programs.language import BRANCH, CHOICES, depth, operands, parts_of, sides, trace

DOMAIN = range(30)
"""Inputs that examples and tests are drawn from."""
LARGEST = 63
"""Largest absolute output of a hidden program."""
LENGTH = 10
"""Largest number of tokens of a hidden program."""
DEPTH = 3
"""Height of the tree of a hidden program of a task."""
PAIRS = 5
"""Examples in a prompt, unless the world is told otherwise; the base was pre-trained on this many."""
_TEST_SHARE = 8  # one function in eight is a test function
_OPERATORS = {"+": 0.28, "-": 0.3, "*": 0.1, "//": 0.05, "%": 0.05, "min": 0.05, "max": 0.05, "if": 0.12}
_CONDITIONS = {"-": 0.8, "%": 0.2}


@dataclass(frozen=True)
class Program:
    """A hidden program."""

    tokens: tuple[str, ...]

    @property
    def text(self) -> str:
        """The program as it is written."""
        return " ".join(self.tokens)

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """Its value for every input of the domain."""
        return tuple(value for value in trace(self.tokens, DOMAIN)[-1][1] if value is not None)

    @cached_property
    def common(self) -> tuple[bool, ...]:
        """For every input, whether the program takes the path there that it takes most often."""
        paths = sides(self.tokens, DOMAIN)
        (most, _), *_ = Counter(paths).most_common(1)
        return tuple(path == most for path in paths)

    @property
    def is_test(self) -> bool:
        """Whether this function belongs to the test split; programs with equal outputs go to the same one."""
        return address("lm/programs", self.outputs) % _TEST_SHARE == 0


def grow(rng: Random, height: int, *, root: str = "") -> list[str]:
    """Return a random program of the given depth; `root` fixes its last operator."""
    if height == 1:
        return ["x"] if rng.random() < 0.65 else [str(rng.randint(1, 5))]
    operator = root or rng.choices(list(_OPERATORS), list(_OPERATORS.values()))[0]
    if operator == BRANCH:
        deep = rng.randrange(2)
        arms = [grow(rng, height - 1 if i == deep else rng.randint(1, height - 1)) for i in range(2)]
        return [*_condition(rng), *arms[0], *arms[1], operator]
    deep = int(rng.random() < 0.2)
    arms = [grow(rng, height - 1 if i == deep else rng.randint(1, max(height - 2, 1))) for i in range(2)]
    return [*arms[0], *arms[1], operator]


def _condition(rng: Random) -> list[str]:
    operator = rng.choices(list(_CONDITIONS), list(_CONDITIONS.values()))[0]
    constant = str(rng.randint(2, 9))
    return [constant, "x", "-"] if operator == "-" and rng.random() < 0.5 else ["x", constant, operator]


def is_sound(tokens: list[str]) -> bool:
    """Tell whether a program is short, defined and small on the whole domain, and has no idle part.

    An idle part is an operator whose value is a constant, or always equals one of its operands (`x 1 *`, an `if`
    whose test never fails).
    """
    if len(tokens) > LENGTH:
        return False
    steps = trace(tokens, DOMAIN)
    starts = [start for start, _ in steps]
    for place, token in enumerate(tokens):
        if not operands(token):
            continue
        values = steps[place][1]
        below = [steps[part][1] for part in parts_of(tokens, starts, place)]
        if None in values or len(set(values)) == 1 or values in below:
            return False
    return all(value is not None and abs(value) <= LARGEST for value in steps[-1][1])


def is_branchy(tokens: list[str]) -> bool:
    """Tell whether the program holds an `if`, `min` or `max` (sound programs take both of its sides)."""
    return BRANCH in tokens or any(token in CHOICES for token in tokens)


def draw(rng: Random, height: int, *, branchy: bool, test: bool) -> Program:
    """Return a random sound program of exactly this depth, from the split, with or without a branch."""
    for _ in range(100_000):
        tokens = grow(rng, height, root=BRANCH if branchy and rng.random() < 0.5 else "")
        if depth(tokens) != height or is_branchy(tokens) != branchy or not is_sound(tokens):
            continue
        program = Program(tuple(tokens))
        if program.is_test == test:
            return program
    raise ConfigError(f"no program of depth {height} found; ask for another depth")


@dataclass(frozen=True)
class Problem:
    """A program with the inputs that are shown and those that it is tested on."""

    program: Program
    shown: tuple[int, ...]
    tested: tuple[int, ...]
    flat: tuple[int, ...]
    """Inputs of a suite whose tests are equally hard: all on the common path."""


def pose(program: Program, rng: Random, *, pairs: int, tests: int, flat: int) -> Problem:
    """Draw the inputs to show and to test, uniformly and disjoint.

    The examples are drawn again until every path of the program that has an input is among them: a path that is not
    shown could not be inferred.
    """
    paths = sides(program.tokens, DOMAIN)
    for shown in _draws(rng, pairs):
        if pairs < len(set(paths)) or {paths[x] for x in shown} == set(paths):
            rest = [x for x in DOMAIN if x not in shown]
            tested = rng.sample(rest, tests)
            easy = [x for x in rest if program.common[x]]
            return Problem(
                program, tuple(sorted(shown)), tuple(tested), tuple(rng.sample(easy, min(flat, len(easy))))
            )
    raise AssertionError("unreachable: draws do not end")


def _draws(rng: Random, pairs: int) -> Iterator[list[int]]:
    while True:
        yield rng.sample(DOMAIN, pairs)


def question(problem: Problem, *, python: bool = False) -> str:
    """Return the user message: examples as `input output`, sorted by input, separated by semicolons."""
    examples = " ; ".join(f"{x} {problem.program.outputs[x]}" for x in problem.shown)
    return f"python {examples}" if python else examples
