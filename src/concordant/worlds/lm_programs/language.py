"""The language of the programs world: postfix expressions over one integer `x`, really executed, and the same
programs written as Python expressions.

`x 7 - x 2 * x 3 + if` means: `x * 2` where `x - 7 > 0`, else `x + 3`. Programs have no loops; every token is one
step, and values beyond a bound are errors, so that each run ends at once and no number grows large.
"""

from collections.abc import Sequence

STEPS = 64
"""Largest number of tokens that is executed."""
BOUND = 9999
"""Largest absolute value that any step may reach."""
ARITHMETIC = ("+", "-", "*", "//", "%")
CHOICES = ("min", "max")
BRANCH = "if"
OPERATORS = (*ARITHMETIC, *CHOICES, BRANCH)
CONSTANTS = tuple(str(number) for number in range(10))

Values = tuple[int | None, ...]
"""One value for each input; None where the program fails (a division by zero, a value out of bounds)."""


def operands(token: str) -> int | None:
    """Return how many operands a token takes, or None for a token that is not of the language."""
    if token == "x" or token in CONSTANTS:
        return 0
    if token == BRANCH:
        return 3
    return 2 if token in OPERATORS else None


def read(text: str) -> tuple[str, ...] | None:
    """Return the tokens of a program, or None if it is none: an unknown token, too few or too many operands.

    >>> read("x 3 +"), read("x 3"), read("x +"), read("")
    (('x', '3', '+'), None, None, None)
    """
    tokens, height = tuple(text.split()), 0
    for token in tokens[: STEPS + 1]:
        taken = operands(token)
        if taken is None or height < taken:
            return None
        height += 1 - taken
    return tokens if height == 1 and len(tokens) <= STEPS else None


def apply(token: str, left: int | None, right: int | None) -> int | None:
    """Return `left token right` by Python's integer rules, None if it fails."""
    if left is None or right is None or (right == 0 and token in ("//", "%")):
        return None
    if token == "+":
        value = left + right
    elif token == "-":
        value = left - right
    elif token == "*":
        value = left * right
    elif token == "//":
        value = left // right
    elif token == "%":
        value = left % right
    else:
        value = min(left, right) if token == "min" else max(left, right)
    return value if -BOUND <= value <= BOUND else None


def trace(tokens: Sequence[str], inputs: Sequence[int]) -> list[tuple[int, Values]]:
    """Execute a well-formed program on all inputs at once.

    Returns:
        For each token the number of its first token (of the subprogram that ends here) and the subprogram's value
        for each input. The last entry is the program itself.
    """
    stack: list[tuple[int, Values]] = []
    steps = list[tuple[int, Values]]()
    for place, token in enumerate(tokens):
        taken = operands(token) or 0
        parts = stack[len(stack) - taken :] if taken else []
        del stack[len(stack) - taken :]
        if not taken:
            values: Values = tuple(inputs) if token == "x" else (int(token),) * len(inputs)
        elif token == BRANCH:
            columns = zip(*(part[1] for part in parts), strict=True)
            values = tuple(None if test is None else yes if test > 0 else no for test, yes, no in columns)
        else:
            values = tuple(apply(token, a, b) for a, b in zip(parts[0][1], parts[1][1], strict=True))
        stack.append((parts[0][0] if parts else place, values))
        steps.append(stack[-1])
    return steps


def run(text: str, inputs: Sequence[int]) -> Values:
    """Execute a program on each input; a text that is no program fails on all.

    >>> run("x 7 - x 2 * x 3 + if", [1, 7, 8]), run("5 x //", [0, 2]), run("x +", [1])
    ((4, 10, 16), (None, 2), (None,))
    """
    tokens = read(text)
    return (None,) * len(inputs) if tokens is None else trace(tokens, inputs)[-1][1]


def parts_of(tokens: Sequence[str], starts: Sequence[int], place: int) -> list[int]:
    """Return the places of the operands of the operator at `place`, given where each subprogram starts."""
    found, end = list[int](), place - 1
    for _ in range(operands(tokens[place]) or 0):
        found.append(end)
        end = starts[end] - 1
    return found[::-1]


def sides(tokens: Sequence[str], inputs: Sequence[int]) -> list[tuple[bool, ...]]:
    """Return for each input which side every `if`, `min` and `max` of the program takes.

    >>> sides("x 2 - 1 x if".split(), [1, 2, 3])
    [(False,), (False,), (True,)]
    """
    steps = trace(tokens, inputs)
    starts, found = [start for start, _ in steps], list[list[bool]]()
    for place, token in enumerate(tokens):
        if token == BRANCH:
            test = steps[parts_of(tokens, starts, place)[0]][1]
            found.append([value is not None and value > 0 for value in test])
        elif token in CHOICES:
            left, right = (steps[part][1] for part in parts_of(tokens, starts, place))
            found.append(
                [a is not None and b is not None and a <= b for a, b in zip(left, right, strict=True)]
            )
    return [tuple(column) for column in zip(*found, strict=True)] if found else [()] * len(inputs)


def depth(tokens: Sequence[str]) -> int:
    """Return the height of the program's tree; a single operand has depth 1.

    >>> depth(["x"]), depth("x 3 +".split()), depth("x 7 - x 2 * x if".split())
    (1, 2, 3)
    """
    stack = list[int]()
    for token in tokens:
        taken = operands(token) or 0
        below = [stack.pop() for _ in range(taken)]
        stack.append(1 + max(below, default=0))
    return stack[-1]


def to_python(text: str) -> str | None:
    """Write a postfix program as a Python expression, tokens separated by spaces; None for no program.

    >>> to_python("x 7 - x 2 * x 3 + if"), to_python("x 3 + 2 *"), to_python("x 3 min")
    ('x * 2 if x - 7 > 0 else x + 3', '( x + 3 ) * 2', 'min ( x , 3 )')
    """
    tokens = read(text)
    if tokens is None:
        return None
    stack: list[tuple[str, int]] = []  # text and binding: 2 operand or call, 1 arithmetic, 0 conditional
    for token in tokens:
        taken = operands(token) or 0
        below = stack[len(stack) - taken :] if taken else []
        del stack[len(stack) - taken :]
        if not taken:
            stack.append((token, 2))
        elif token in CHOICES:
            stack.append((f"{token} ( {below[0][0]} , {below[1][0]} )", 2))
        elif token == BRANCH:
            test, yes, no = (_bracket(*part, least=1) for part in below)
            stack.append((f"{yes} if {test} > 0 else {no}", 0))
        else:
            left, right = (_bracket(*part, least=2) for part in below)
            stack.append((f"{left} {token} {right}", 1))
    return stack[0][0]


def _bracket(text: str, strength: int, *, least: int) -> str:
    return text if strength >= least else f"( {text} )"
