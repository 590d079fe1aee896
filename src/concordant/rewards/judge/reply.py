"""Reading a judge's reply strictly: anything but the JSON asked for is an abstention, never a score."""

import re
from typing import Any

from concordant.rewards.formats import read_json

_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.S)
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.S)


class Abstained(Exception):
    """The reply holds no verdict that can be trusted; the message says why."""


def read_reply(text: str, code: str) -> dict[str, Any]:
    """Return the JSON object of a reply.

    A leading `<think>` block and one fence around the object are allowed. Nothing else is: a reply that holds more than
    the object may have copied a verdict from the text it was to judge.

    >>> read_reply('{"code": "c0de", "score": 7}', "c0de")["score"]
    7

    Raises:
        Abstained: for anything else, and for an object without the code.
    """
    thought = _THOUGHT.match(text)
    rest = text[thought.end() :] if thought else text
    fence = _FENCE.fullmatch(rest)
    try:
        found = read_json(fence[1] if fence else rest)
    except (ValueError, RecursionError):
        raise Abstained("the reply is not the JSON object asked for") from None
    if not isinstance(found, dict):
        raise Abstained("the reply is not the JSON object asked for")
    if found.get("code") != code:
        raise Abstained("the reply does not carry the code of the question")
    return found


def read_score(found: dict[str, Any], low: float, high: float) -> float:
    """Return the score of a reply, from 0 at `low` to 1 at `high`.

    >>> read_score({"score": 7}, 0, 10)
    0.7

    Raises:
        Abstained: when it is no number, or out of range.
    """
    score = found.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise Abstained("the score is not a number")
    if not low <= score <= high:
        raise Abstained(f"the score is not between {low:g} and {high:g}")
    return (score - low) / (high - low)


def read_winner(found: dict[str, Any]) -> str:
    """Return `A`, `B` or `tie`.

    Raises:
        Abstained: when the reply names no winner.
    """
    winner = found.get("winner")
    if winner not in ("A", "B", "tie"):
        raise Abstained("the winner is none of A, B and tie")
    return str(winner)
