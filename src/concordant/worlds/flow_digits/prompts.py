"""Prompts of the digits: `a handwritten 3`, or `a handwritten 3, thickness 0.40, slant -0.75`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from concordant.core.errors import DataError
from concordant.worlds.flow_digits.data import CLASSES

LIMIT = 1.5
"""Prompts ask for a thickness and a slant between minus and plus this."""
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_CLASS = re.compile(r"a handwritten (\d)")
_CODE = re.compile(rf"a handwritten (\d), thickness {_NUMBER}, slant {_NUMBER}")


class Code(NamedTuple):
    """What a prompt with attributes asks for."""

    label: int
    thickness: float
    slant: float

    @property
    def text(self) -> str:
        """The prompt.

        >>> Code(3, 0.4, -0.75).text
        'a handwritten 3, thickness 0.40, slant -0.75'
        """
        return f"{class_prompt(self.label)}, thickness {self.thickness:.2f}, slant {self.slant:.2f}"


def class_prompt(label: int) -> str:
    """Return the prompt of a class.

    >>> class_prompt(3)
    'a handwritten 3'
    """
    return f"a handwritten {label}"


def read_class(prompt: Any) -> int:
    """Return the class that a prompt asks for."""
    match = _CLASS.fullmatch(prompt) if isinstance(prompt, str) else None
    if match is None:
        raise DataError(
            f"prompt {prompt!r} is not known to this network; it reads 'a handwritten D', D from 0 to {CLASSES - 1}"
        )
    return int(match[1])


def read_code(prompt: Any) -> Code:
    """Return class, thickness and slant that a prompt asks for."""
    match = _CODE.fullmatch(prompt) if isinstance(prompt, str) else None
    if match is None:
        raise DataError(
            f"prompt {prompt!r} is not known to this network; it reads 'a handwritten D, thickness X, slant Y' with D "
            f"from 0 to {CLASSES - 1} and numbers from -{LIMIT} to {LIMIT}"
        )
    return Code(int(match[1]), float(match[2]), float(match[3]))


@dataclass(frozen=True)
class ClassReader:
    """Reads prompts of classes: a code has one place for each class."""

    @property
    def size(self) -> int:
        """Length of a code."""
        return CLASSES

    def encode(self, prompts: Sequence[Any]) -> Tensor:
        """Return codes, float32 (u, 10)."""
        return class_codes(torch.tensor([read_class(prompt) for prompt in prompts], dtype=torch.int64))


@dataclass(frozen=True)
class CodeReader:
    """Reads prompts with attributes: a code has one place for each class, then thickness and slant."""

    @property
    def size(self) -> int:
        """Length of a code."""
        return CLASSES + 2

    def encode(self, prompts: Sequence[Any]) -> Tensor:
        """Return codes, float32 (u, 12)."""
        codes = [read_code(prompt) for prompt in prompts]
        labels = class_codes(torch.tensor([code.label for code in codes], dtype=torch.int64))
        return torch.cat([labels, torch.tensor([code[1:] for code in codes]).reshape(-1, 2)], 1)


def class_codes(labels: Tensor) -> Tensor:
    """Return float32 (u, 10) with a 1 at the class."""
    return torch.nn.functional.one_hot(labels, CLASSES).float()
