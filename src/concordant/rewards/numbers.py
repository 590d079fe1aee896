"""Reading integers and small expressions out of model text, without ever evaluating it as code.

Model output is hostile input: it may be code, a hundred thousand brackets or a power tower. The reader here
knows integers, `+`, `-`, `*` and round brackets, and refuses everything else, long texts, deep nesting and
large values by returning None.
"""

import re

MAX_CHARS = 80
MAX_DEPTH = 8
MAX_DIGITS = 9
MAX_VALUE = 10**12

_TOKEN = re.compile(r"\s*([0-9]+|[-+*()])")
_INTEGER = re.compile(r"\s*([-+]?)\s*([0-9]{1,30})\s*")


class _Refused(Exception):
    """The text is not a small expression."""


def read_integer(text: str) -> int | None:
    """Read one integer that may carry a sign, spaces around it and leading zeros.

    Returns:
        The integer, or None when the text is anything else or longer than 9 significant digits.

    >>> read_integer(" +007 "), read_integer("7.0"), read_integer("3+4")
    (7, None, None)
    """
    match = _INTEGER.fullmatch(text) if text.isascii() else None
    if match is None or len(match[2].lstrip("0")) > MAX_DIGITS:
        return None
    return -int(match[2]) if match[1] == "-" else int(match[2])


def read_expression(text: str) -> tuple[int, list[int]] | None:
    """Read an expression of integers, `+`, `-`, `*` and brackets.

    Returns:
        Its value and the list of integers written in it (unsigned, in order), or None when the text is
        anything else.

    >>> read_expression("(2+3)*4"), read_expression("2**3"), read_expression("")
    ((20, [2, 3, 4]), None, None)
    """
    if len(text) > MAX_CHARS or not text.isascii():
        return None
    tokens, at = [], 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None or len(match[1]) > MAX_DIGITS:
            return None
        tokens.append(match[1])
        at = match.end()
    reader = _Reader(tokens)
    try:
        value = reader.sum(0)
    except _Refused:
        return None
    return (value, reader.seen) if reader.at == len(tokens) else None


class _Reader:
    """Recursive descent over a token list; every method returns the value of what it consumed."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.seen = tokens, 0, list[int]()

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def sum(self, depth: int) -> int:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> int:
        value = self.factor(depth)
        while self.peek() == "*":
            self.take()
            value *= self.factor(depth)
            if abs(value) > MAX_VALUE:
                raise _Refused
        return value

    def factor(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise _Refused
        token = self.take()
        if token == "-":
            return -self.factor(depth + 1)
        if token == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise _Refused
            return value
        if not token.isdigit():
            raise _Refused
        self.seen.append(int(token))
        return self.seen[-1]
