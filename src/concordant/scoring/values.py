"""From what a reward returned to outcomes: finite numbers, or missing with a reason. Nothing here imports torch."""

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from concordant.scoring.outcome import Outcome
from concordant.scoring.reward import Reward, Verdict

LARGEST = (2 - 2**-23) * 2.0**127
"""Largest number that a float32 column holds."""
LONGEST = 300
"""Characters of an error message that a reason keeps."""
_ABSTAINED = "abstained"
_NONE = "returned None"
_EMPTY: Mapping[str, Any] = {}
_PARTS = {"segment": "segments", "step": "trained steps", "check": "checks"}


def number(raw: Any) -> tuple[float | None, str]:
    """Read a single value: the number, or None and the reason.

    A bool is a number, as are the scalars of numpy and torch. Text is none, nor is an array with dimensions.

    >>> number(True), number("1"), number(float("inf"))
    ((1.0, ''), (None, 'returned str, not a number'), (None, 'returned inf'))
    """
    if raw is None:
        return None, _NONE
    dimensions: Any = getattr(raw, "ndim", 0)
    if isinstance(raw, str | bytes) or not hasattr(raw, "__float__") or dimensions:
        return None, f"returned {type(raw).__name__}, not a number"
    try:
        value = float(raw)
    except OverflowError:
        return None, f"returned {type(raw).__name__}, too large for a column"
    except (TypeError, ValueError):
        return None, f"returned {type(raw).__name__}, not a number"
    if not math.isfinite(value):
        return None, f"returned {value}"
    return (value, "") if abs(value) <= LARGEST else (None, f"returned {value:g}, too large for a column")


def outcome(raw: Any, seconds: float, attempts: int) -> Outcome:
    """Read the value of one row: a number, None or a Verdict."""
    if type(raw) is float and abs(raw) <= LARGEST:  # the usual case
        return Outcome(raw, seconds=seconds, attempts=attempts)
    if not isinstance(raw, Verdict):
        value, reason = number(raw)
        return Outcome(value, reason, seconds=seconds, attempts=attempts)
    detail = _plain(raw.detail)
    value, reason = number(raw.score)
    if raw.score is None:
        why = detail.get("reason")
        reason = f"{_ABSTAINED}: {shorten(str(why))}" if why else _ABSTAINED
    confidence = raw.confidence
    if confidence is not None:
        confidence, fault = number(confidence)
        if confidence is None or not 0 <= confidence <= 1:
            reason = f"the confidence of the verdict {fault or f'is {confidence:g}, not in [0, 1]'}"
            value, confidence = None, None
    sandbox = detail.get("sandbox", "")
    return Outcome(
        value, reason, confidence, str(raw.kind), detail, seconds, attempts,
        sandbox=sandbox if isinstance(sandbox, str) else "",
    )  # fmt: skip


def share(raw: Any, seconds: float, attempts: int) -> Outcome:
    """Read what was said about a pair: the share that left wins; a number outside [0, 1] is no share.

    >>> share(1.5, 0.0, 1).reason
    'returned 1.5, not a share in [0, 1]'
    """
    said = outcome(raw, seconds, attempts)
    if isinstance(said.value, float) and not 0 <= said.value <= 1:
        return replace(
            said, value=None, confidence=None, reason=f"returned {said.value:g}, not a share in [0, 1]"
        )
    return said


def read(
    reward: Reward, raw: Any, size: int, length: int | None, seconds: float, attempts: int
) -> list[Outcome]:
    """Read what one call returned, as one outcome for each of the `size` rows (or pairs) it judged.

    Args:
        reward: the reward that was called; its level and style say what it should return.
        raw: what it returned.
        size: rows judged by the call.
        length: number of values expected for a row at the levels `segment` and `step`.
        seconds: wall time of the call.
        attempts: number of the attempt.
    """
    if reward.level in _PARTS:
        return [_several(reward.level, raw, length, seconds, attempts)]
    judged = share if reward.level == "pair" else outcome
    if reward.level in ("rollout", "pair") and reward.style == "fields":
        return [judged(raw, seconds, attempts)]
    reason = _not_one_each(raw, size, "pairs" if reward.level == "pair" else "completions")
    if reason:
        return missing(reason, size, seconds, attempts)
    return [judged(raw[i], seconds, attempts) for i in range(size)]


def missing(reason: str, size: int, seconds: float = 0.0, attempts: int = 0) -> list[Outcome]:
    """The same reason for all rows of a call."""
    return [Outcome(None, reason, seconds=seconds, attempts=attempts)] * size


def raised(error: BaseException) -> str:
    """The reason of an exception: one short line."""
    try:
        text = str(error)
    except Exception:  # an exception of the user's whose __str__ fails
        text = ""
    return f"raised {type(error).__name__}: {shorten(text)}" if text else f"raised {type(error).__name__}"


def shorten(text: str) -> str:
    """One line of at most `LONGEST` characters."""
    line = " ".join(text[: 4 * LONGEST].split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def said_nothing(reason: str) -> bool:
    """Whether a reason means that the reward declined to judge, as opposed to that it failed."""
    return reason == _NONE or reason.startswith(_ABSTAINED)


def _sized(raw: Any) -> bool:
    """Whether this is a list of values: a sequence, or a one-dimensional array."""
    if isinstance(raw, str | bytes | Mapping | Set):
        return False
    return isinstance(raw, Sequence) or getattr(raw, "ndim", 0) == 1


def _not_one_each(raw: Any, size: int, noun: str) -> str:
    if not _sized(raw):
        what = "None" if raw is None else type(raw).__name__
        return f"returned {what} for {size} {noun}"
    return "" if len(raw) == size else f"returned {len(raw)} values for {size} {noun}"


def _several(level: str, raw: Any, length: int | None, seconds: float, attempts: int) -> Outcome:
    """Read one value for each part of a row. None and NaN leave a part missing; any other fault, the whole row.

    `detail["missing"]` says why, by place, for the parts that are.
    """

    def lost(reason: str) -> Outcome:
        return Outcome(None, reason, seconds=seconds, attempts=attempts)

    if raw is None:
        return lost(_NONE)
    if not _sized(raw):
        return lost(f"returned {type(raw).__name__}, not a list of numbers")
    if length is not None and len(raw) != length:
        return lost(f"returned {len(raw)} values for {length} {_PARTS[level]}")
    parts = [outcome(raw[place], 0.0, 0) for place in range(len(raw))]
    for place, part in enumerate(parts):
        if part.value is None and not said_nothing(part.reason) and part.reason != "returned nan":
            return lost(f"{part.reason}, at place {place + 1} of {len(parts)}")
    if all(part.value is None for part in parts):
        why = next((part.reason for part in parts if part.reason.startswith(_ABSTAINED)), "")
        return lost(why or f"returned no value for any of {len(parts)} {_PARTS[level]}")
    values = tuple(part.value if isinstance(part.value, float) else math.nan for part in parts)
    reasons = {str(place): part.reason for place, part in enumerate(parts) if part.value is None}
    return Outcome(
        values, kind=parts[0].kind, detail={"missing": reasons} if reasons else _EMPTY, seconds=seconds,
        attempts=attempts, sandbox=next((part.sandbox for part in parts if part.sandbox), ""),
    )  # fmt: skip


def _plain(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """The detail of a verdict as JSON types; what is none of them is written as `repr` shows it."""
    if not detail:
        return _EMPTY
    plain: dict[str, Any] = json.loads(json.dumps(dict(detail), default=repr))
    return plain
