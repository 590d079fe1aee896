"""Refusals of the kernels: each says what was expected, what came and what to do."""

from collections.abc import Sequence

from torch import Tensor

from concordant.core.errors import ConfigError, DataError, nearest

LARGEST = 1e150  # squares of anything larger leave float64


def rows(kernel: str, x: Tensor, name: str, other: Tensor | None) -> None:
    """Refuse a row column that does not have one entry for each row of the first array."""
    if other is not None and tuple(other.shape) != tuple(x.shape[:1]):
        raise DataError(
            f"{kernel}: {name} must have shape {tuple(x.shape[:1])}, one entry for each row b, "
            f"got {tuple(other.shape)}; give the column of the same table"
        )


def alike(kernel: str, first: str, x: Tensor, name: str, other: Tensor | None) -> None:
    """Refuse an array whose shape differs from that of another one."""
    if other is not None and other.shape != x.shape:
        raise DataError(
            f"{kernel}: {name} must have the shape of {first}, {tuple(x.shape)}, got {tuple(other.shape)}; "
            f"expand or pad it to the same axes first"
        )


def axes(kernel: str, name: str, x: Tensor, letters: str) -> None:
    """Refuse an array with the wrong number of axes; a trailing `*e` stands for any number."""
    names = letters.split()
    least = len([n for n in names if not n.startswith("*")])
    if x.dim() < least or (least == len(names) and x.dim() > least):
        raise DataError(f"{kernel}: {name} must have axes [{letters}], got shape {tuple(x.shape)}")


def leading(kernel: str, name: str, x: Tensor, other_name: str, other: Tensor, count: int) -> None:
    """Refuse two arrays whose first `count` axes differ in length."""
    if x.shape[:count] != other.shape[:count]:
        raise DataError(
            f"{kernel}: {name} {tuple(x.shape)} and {other_name} {tuple(other.shape)} must agree in the "
            f"first {count} {'axis' if count == 1 else 'axes'}; give columns of the same table"
        )


def choice(kernel: str, option: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value outside a short list."""
    if value not in allowed:
        hint = f"; {nearest(value, [str(a) for a in allowed])}" if isinstance(value, str) else ""
        raise ConfigError(f"{kernel}: {option} must be one of {list(allowed)}, got {value!r}{hint}")


def between(kernel: str, option: str, value: float | int, low: float | int, high: float | int) -> None:
    """Refuse a number outside a closed interval (NaN is outside)."""
    if not low <= value <= high:
        raise ConfigError(f"{kernel}: {option} must lie in [{low:g}, {high:g}], got {value!r}")


def finite(kernel: str, name: str, x: Tensor) -> None:
    """Refuse inf, and values whose square would be inf, among entries that are judged."""
    if x.numel() and bool((x.abs() > LARGEST).any()):
        raise DataError(
            f"{kernel}: {name} holds inf or a value beyond {LARGEST:g} where it is judged; "
            f"a score that could not be computed is missing: write NaN"
        )


def binary(kernel: str, name: str, x: Tensor) -> None:
    """Refuse an outcome that is neither 0, 1 nor missing."""
    odd = (x != 0) & (x != 1) & ~x.isnan()
    if bool(odd.any()):
        raise DataError(
            f"{kernel}: {name} must be 0 or 1 (NaN = missing), got {x[odd][0].item():g}; "
            f"threshold a graded score into an outcome first"
        )
