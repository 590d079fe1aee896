"""Conditions of prompts: a tensor, or a tuple of tensors, with one entry a row."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from concordant.core.errors import ConfigError

Condition = Tensor | tuple[Tensor, ...]


def numbered(values: Sequence[Any]) -> tuple[list[Any], Tensor]:
    """The different values in the order in which they appear, and the number of each, int64 (n)."""
    known = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return list(known), torch.tensor([known[value] for value in values], dtype=torch.long)


def pick(condition: Condition, index: Tensor) -> Condition:
    """Entries of a condition."""
    return each(condition, lambda c: c[index])


def each(condition: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    """Apply a function to the tensors of a condition."""
    return tuple(map(change, condition)) if isinstance(condition, tuple) else change(condition)


def with_null(condition: Condition, null: Condition) -> Condition:
    """A condition followed by as many entries of the null condition."""
    if isinstance(condition, tuple) and isinstance(null, tuple):
        return tuple(_followed(c, n) for c, n in zip(condition, null, strict=True))
    if isinstance(condition, Tensor) and isinstance(null, Tensor):
        return _followed(condition, null)
    raise ConfigError(
        "a network's `null` must have the form of what its `encode` returns: both tensors, or both tuples"
    )


def _followed(condition: Tensor, null: Tensor) -> Tensor:
    return torch.cat([condition, null.to(condition).expand_as(condition)])
