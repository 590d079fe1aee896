"""Random numbers addressed by content: seed, stream, step and row id, never by position or call order.

There is no generator state to save: a number is a pure function of its address, so permuting rows permutes the numbers,
leaving a row out changes no other row, and a resumed run draws what the uninterrupted one would have drawn.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_INT64 = 1 << 63


def address(*parts: object) -> int:
    """Return a stable signed 64-bit integer for a tuple of printable parts."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64 finaliser: a bijection of int64 whose outputs pass as independent bits."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Rng:
    """A named stream of uniform numbers; a context parameter of kernels, samplers and policies."""

    seed: int = 0
    stream: str = ""
    step: int = 0

    def child(self, name: str) -> "Rng":
        """Return the stream of a part (a stage, a world, a sampler round)."""
        return Rng(self.seed, f"{self.stream}/{name}", self.step)

    def at(self, step: int) -> "Rng":
        """Return the same stream at another training step."""
        return Rng(self.seed, self.stream, step)

    def integer(self) -> int:
        """Return one 63-bit integer for seeding a foreign generator."""
        return address(self.seed, self.stream, self.step) % _INT64

    def generator(self) -> torch.Generator:
        """Return a torch generator for parts that are not addressed by row (initialisation, data order)."""
        return torch.Generator().manual_seed(self.integer())

    def uniform(self, ids: Tensor, n: int | None = None) -> Tensor:
        """Uniform numbers in [0, 1) for each row id.

        Args:
            ids: int64, shape (b).
            n: how many numbers a row gets; None gives one.

        Returns:
            float64, shape (b) or (b, n). Row i depends on the stream and on `ids[i]` only.
        """
        key = mix(ids.long() ^ address(self.seed, self.stream, self.step))
        if n is not None:
            key = mix(key[:, None] ^ mix(torch.arange(n, device=ids.device)))
        return _shift(key, 11).double() * 2.0**-53

    def normal(self, ids: Tensor, n: int) -> Tensor:
        """Standard normal numbers for each row id, by the Box-Muller transform of `uniform`.

        Args:
            ids: int64, shape (b).
            n: how many numbers a row gets.

        Returns:
            float32, shape (b, n), at most 5.8 in absolute value. Row i depends on the stream and on `ids[i]` only; a
            larger n gives other numbers.
        """
        half = (n + 1) // 2
        u = (
            self.uniform(ids, 2 * half).float().clamp(max=1.0 - 2.0**-24)
        )  # rounding may give 1, whose log is infinite
        radius = (-2.0 * torch.log1p(-u[:, :half])).sqrt()
        angle = 2.0 * math.pi * u[:, half:]
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]


@dataclass(frozen=True)
class Progress:
    """How far training is: a context parameter of kernels that fade or anneal."""

    step: int = 0
    total: int = 1

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.step / max(self.total, 1)


class _Tree(type):
    """Trees of arrays are instances of `State`, so that annotation checks let them through."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, dict | list | tuple | Tensor)


class State(metaclass=_Tree):
    """Annotation that marks the state parameter of a stateful kernel (a tree of arrays)."""
