"""Dotted overrides of frozen dataclasses, chains and parts; and the resolved configuration as plain data."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from concordant.core.chain import Chain, Part
from concordant.core.edits import all_options, as_data
from concordant.core.errors import ConcordantError, ConfigError, nearest
from concordant.core.signature import kernel_name


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b.c=value`; the value is read as JSON, else taken as text."""
    key, sep, raw = text.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"--set takes key=value, e.g. chain.z.eps=1e-6; got {text!r}")
    try:
        value = json.loads(raw)
    except json.JSONDecodeError:
        value = raw
    return key.strip(), tuple(value) if isinstance(value, list) else value


def override(target: Any, key: str, value: Any, *, path: str = "") -> Any:
    """Return a copy of `target` with the value at a dotted key replaced; unknown keys name the nearest one."""
    head, _, rest = key.partition(".")
    here = f"{path}.{head}" if path else head
    if isinstance(target, Chain):
        _known(head, target.stages, here)
        return dataclasses.replace(
            target, stages={**target.stages, head: override(target.stages[head], rest, value, path=here)}
        )
    if isinstance(target, Part):
        options = target.signature.options
        _known(head, options, here)
        fitted = _fit(value, target.signature.annotations.get(head), here)
        return dataclasses.replace(target, options={**target.options, head: fitted})
    if isinstance(target, Mapping):
        _known(head, target, here)
        inner = override(target[head], rest, value, path=here) if rest else value
        return {**target, head: inner}
    if isinstance(target, tuple) and head.isdigit() and int(head) < len(target):
        inner = override(target[int(head)], rest, value, path=here) if rest else value
        return (*target[: int(head)], inner, *target[int(head) + 1 :])
    if dataclasses.is_dataclass(target) and not isinstance(target, type):
        _known(head, [f.name for f in dataclasses.fields(target)], here)
        if rest:
            inner = override(getattr(target, head), rest, value, path=here)
        else:
            inner = _fit(value, typing.get_type_hints(type(target)).get(head), here)
        return dataclasses.replace(target, **{head: inner})
    raise ConfigError(f"{path or key!r} has nothing inside that could be set by {key!r}")


def _known(name: str, choices: Any, path: str) -> None:
    if name not in choices:
        raise ConfigError(f"unknown key {path!r}; {nearest(name, choices)}")


def _fit(value: Any, annotation: Any, path: str) -> Any:
    if annotation is None or annotation is Any:
        return value
    try:
        return pydantic.TypeAdapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        raise ConfigError(
            f"{path}: {value!r} does not fit; expected {_type_name(annotation)} ({error.errors()[0]['msg']})"
        ) from None
    except pydantic.errors.PydanticSchemaGenerationError:
        raise ConfigError(
            f"{path} cannot be set from the command line; its parts can be, e.g. {path}.<name>"
        ) from None


def _type_name(annotation: Any) -> str:
    return (
        getattr(annotation, "__name__", str(annotation))
        if not typing.get_args(annotation)
        else str(annotation)
    )


def plain(value: Any) -> Any:
    """Return a configuration value as JSON-ready data: parts and chains by kernel name with resolved options."""
    if isinstance(value, Chain):
        return plain(as_data(value))
    if isinstance(value, Part):
        return {"kernel": kernel_name(value.kernel), "options": plain(all_options(value))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not f.name.startswith("_")
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if callable(value):
        return describe_callable(value)
    raise ConcordantError(f"cannot write {value!r} into a configuration file")


def describe_callable(function: Callable[..., Any]) -> str:
    """Return `module:name` of a function or callable object."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = inspect.getmodule(function)
    return f"{module.__name__ if module else '?'}:{name}"
