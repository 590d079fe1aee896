"""Run reward functions over a table: table in, columns with missing out.

This is the in-process room. Whatever goes wrong for a row is a recorded missing value with its reason, never a number.
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from concordant.core.errors import RewardError, nearest
from concordant.core.table import Table

_PLURAL = {"prompts": "prompt", "completions": "completion"}


@dataclass(frozen=True)
class Reward:
    """A named reward function.

    `style="fields"`: called once a row with the fields it names, e.g. `f(completion, answer) -> float | None`.
    `style="batch"`: TRL's calling convention, `f(prompts, completions, **columns) -> list[float | None]`.
    """

    name: str
    function: Callable[..., Any]
    style: str = "fields"


@dataclass(frozen=True)
class Scores:
    """Result of a scoring pass: the table with one float column per reward, and why which value is missing.

    The table's field `missing` says the same for each row, `{reward: reason}`, so that it stays with the rollout.
    """

    table: Table
    missing: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    calls: int = 0


def as_reward(function: Any, name: str | None = None) -> Reward:
    """Wrap a function; one that takes `completions` (a list) follows TRL's convention."""
    if isinstance(function, Reward):
        return function
    if not callable(function):
        raise RewardError(f"a reward must be callable, got {function!r}")
    called = function if inspect.isroutine(function) else type(function).__call__
    style = "batch" if "completions" in inspect.signature(called).parameters else "fields"
    return Reward(name or str(getattr(function, "__name__", type(function).__name__)), function, style)


def check_fields(reward: Reward, fields: Sequence[str]) -> None:
    """Refuse a reward that asks for a field the data does not have."""
    if reward.style == "batch":
        return
    for parameter in inspect.signature(reward.function).parameters.values():
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and parameter.name not in fields:
            raise RewardError(
                f"reward {reward.name!r} asks for the field {parameter.name!r}, which the data does not have; "
                f"{nearest(parameter.name, fields)}"
            )


def score(table: Table, rewards: Sequence[Reward]) -> Scores:
    """Score every row with every reward.

    Returns:
        Scores whose table has a float32 column [b] for each reward; NaN where the reward raised, returned None, NaN,
        inf, a wrong type or (batch style) a wrong count. Reasons are kept by reward and row position.

    Raises:
        RewardError: if a reward needs a field that is not there, or judged no row at all because every call failed.
    """
    columns: dict[str, Any] = {}
    missing: dict[str, dict[int, str]] = {}
    for reward in rewards:
        check_fields(reward, list(table.fields))
        raw = _batch(reward, table) if reward.style == "batch" else _by_row(reward, table)
        values, reasons = [], {}
        for row, (value, reason) in enumerate(raw):
            number, why = (math.nan, reason) if reason else _as_number(value)
            values.append(number)
            if why:
                reasons[row] = why
        failed = [why for why in reasons.values() if why != "returned None"]
        if table.rows and len(failed) == table.rows:
            raise RewardError(
                f"reward {reward.name!r} failed on all {table.rows} rollouts; the first: {failed[0]}"
            )
        columns[reward.name] = ("b", torch.tensor(values, dtype=torch.float32))
        missing[reward.name] = reasons
    by_row = [{name: why[row] for name, why in missing.items() if row in why} for row in range(table.rows)]
    return Scores(table.with_columns(columns, {"missing": by_row}), missing, table.rows * len(rewards))


def _as_number(value: Any) -> tuple[float, str]:
    if value is None:
        return math.nan, "returned None"
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return math.nan, f"returned {type(value).__name__}, not a number"
    number = float(value)
    return (number, "") if math.isfinite(number) else (math.nan, f"returned {number}")


def _finish(value: Any) -> Any:
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _by_row(reward: Reward, table: Table) -> list[tuple[Any, str]]:
    parameters = inspect.signature(reward.function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [name for name in table.fields if open_ended or name in parameters]
    results = []
    for row in range(table.rows):
        try:
            results.append(
                (_finish(reward.function(**{name: table.fields[name][row] for name in names})), "")
            )
        except Exception as error:  # a reward is foreign code: any failure is a missing value with its reason
            results.append((None, f"raised {type(error).__name__}: {error}"))
    return results


def _batch(reward: Reward, table: Table) -> list[tuple[Any, str]]:
    fields = {plural: table.fields[single] for plural, single in _PLURAL.items()}
    others = {name: values for name, values in table.fields.items() if name not in _PLURAL.values()}
    tokens = [row[kept].tolist() for row, kept in zip(table["tokens"], table["mask"], strict=True)]
    known = {**others, **fields, "completion_ids": tokens}
    parameters = inspect.signature(reward.function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = {name: values for name, values in known.items() if name in parameters}
    try:
        values = _finish(reward.function(**known))
    except Exception as error:  # as above
        return [(None, f"raised {type(error).__name__}: {error}")] * table.rows
    if not isinstance(values, Sequence | torch.Tensor) or len(values) != table.rows:
        got = f"{len(values)} values" if hasattr(values, "__len__") else type(values).__name__
        return [(None, f"returned {got} for {table.rows} completions")] * table.rows
    return [(value, "") for value in values]
