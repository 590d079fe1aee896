"""What a kernel reads and returns, taken from its jaxtyping annotations."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from concordant.core.errors import ChainError
from concordant.core.seeds import Progress, Rng, State

Columns = str | tuple[str, ...]
Schema = Mapping[str, tuple[str, ...]]
_CONTEXT = {Rng: "rng", Progress: "progress", State: "state"}


@dataclass(frozen=True)
class ArraySpec:
    """Kind (Float, Int, Bool) and axis letters of an array; `*e` stands for all axes that follow."""

    kind: str
    dims: tuple[str, ...]
    required: bool = True

    def fill(self, rest: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Return the axes with variadic letters filled in."""
        return tuple(axis for dim in self.dims for axis in (rest[dim] if dim.startswith("*") else (dim,)))

    def match(self, axes: tuple[str, ...], rest: dict[str, tuple[str, ...]]) -> bool:
        """Match a column's axes against this spec, filling or checking variadic letters in `rest`."""
        fixed = [dim for dim in self.dims if not dim.startswith("*")]
        if len(fixed) == len(self.dims):
            return axes == self.dims
        head = self.dims[:-1]
        return (
            axes[: len(head)] == head
            and rest.setdefault(self.dims[-1], axes[len(head) :]) == axes[len(head) :]
        )


@dataclass(frozen=True)
class Signature:
    """The parts of a kernel's signature that the binder needs."""

    name: str
    arrays: Mapping[str, ArraySpec]
    options: Mapping[str, Any]
    annotations: Mapping[str, Any]
    context: Mapping[str, str]
    takes_valid: bool
    returns: ArraySpec | Mapping[str, ArraySpec]

    @property
    def mixes_rows(self) -> bool:
        """Whether a row's result depends on other rows (such stages need the whole group)."""
        return self.takes_valid or any(name in self.arrays for name in ("group", "left", "right"))

    @property
    def parameters(self) -> list[str]:
        """Names that a stage may set."""
        return [*self.arrays, *self.options]


def names_of(columns: Columns) -> tuple[str, ...]:
    """Return a column reference as a tuple of names."""
    return (columns,) if isinstance(columns, str) else tuple(columns)


def kernel_name(kernel: Callable[..., Any]) -> str:
    """Return the name a kernel is shown under."""
    return getattr(kernel, "__name__", None) or type(kernel).__name__


def _array_spec(annotation: Any, required: bool) -> ArraySpec | None:
    for candidate in typing.get_args(annotation) or (annotation,):
        if hasattr(candidate, "dim_str") and hasattr(candidate, "dtype"):
            return ArraySpec(candidate.dtype.__name__, tuple(candidate.dim_str.split()), required)
    return None


def _returns(name: str, annotation: Any) -> ArraySpec | dict[str, ArraySpec]:
    if inspect.isclass(annotation) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        fields = {field: _array_spec(hint, True) for field, hint in typing.get_type_hints(annotation).items()}
        return {field: spec for field, spec in fields.items() if spec is not None}
    if typing.get_origin(annotation) is tuple:  # a stateful kernel returns (value, state)
        annotation = typing.get_args(annotation)[0]
    spec = _array_spec(annotation, True)
    if spec is None:
        raise ChainError(
            f"kernel {name!r}: the return annotation must be an array like Float[Tensor, 'b'], got {annotation}"
        )
    return spec


@functools.cache
def _of_function(function: Callable[..., Any], name: str) -> Signature:
    arrays: dict[str, ArraySpec] = {}
    options: dict[str, Any] = {}
    context: dict[str, str] = {}
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ChainError(
                f"kernel {name!r} takes *args or **kwargs; name every parameter, so that none is swallowed"
            )
        hint = hints.get(parameter.name)
        spec = _array_spec(hint, parameter.default is parameter.empty)
        if hint in _CONTEXT:
            context[parameter.name] = _CONTEXT[hint]
        elif spec is not None:
            arrays[parameter.name] = spec
        else:
            options[parameter.name] = parameter.default
    takes_valid = arrays.pop("valid", None) is not None
    return Signature(name, arrays, options, hints, context, takes_valid, _returns(name, hints.get("return")))


def signature_of(kernel: Callable[..., Any]) -> Signature:
    """Read a kernel function, or a stateful kernel (a frozen dataclass with `init` and `__call__`)."""
    if isinstance(kernel, types.FunctionType):
        return _of_function(kernel, kernel_name(kernel))
    wrapped = inspect.unwrap(kernel)
    if isinstance(wrapped, types.FunctionType):
        return _of_function(wrapped, kernel_name(kernel))
    if not hasattr(kernel, "init"):
        raise ChainError(
            f"{kernel!r} is no kernel: give a function, or a frozen dataclass with init() and __call__"
        )
    return _of_function(type(kernel).__call__, kernel_name(kernel))
