"""A content hash of the code that a recipe's numbers depend on.

It covers the source of the recipe's module, the resolved arms, and the source of everything of this package that the
arms reach: kernels with the helpers they call, objective parts, samplers, probes and rewards, and their classes; and
every file of the world, its base policy included. The training loop and the policies are not in it: they serve all
recipes, and a change there that moves results is for the change log and a new board. A result whose hash differs from
the present one is older than its code.
"""

import dataclasses
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concordant.comparison.differences import outline

if TYPE_CHECKING:
    from concordant.core.recipe import Arm, Recipe

_PACKAGE = "concordant."
_SKIPPED = ("concordant.core.", "concordant.worlds.", "concordant.policies.", "concordant.loops.")


def revision(recipe: "Recipe") -> str:
    """Return twelve hexadecimal digits that change when the code behind the recipe's results changes."""
    sources = {
        f"recipe {recipe.slug}": _recipe_source(recipe),
        "arms": json.dumps({name: _arm_data(arm) for name, arm in recipe.arms.items()}, sort_keys=True),
    }
    sources |= {f"world {name}": content for name, content in _world_files(recipe.world).items()}
    for part in reached(recipe.arms):
        sources[f"{part.__module__}:{part.__qualname__}"] = _source(part)
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(f"{name}\n{sources[name]}\n".encode())
    return digest.hexdigest()[:12]


def _world_files(world: str) -> dict[str, str]:
    """Return a hash for each file of a world's package."""
    folder = Path(__file__).parents[1] / "worlds" / world.replace("/", "_", 1)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _arm_data(arm: "Arm") -> dict[str, Any]:
    return {
        field.name: outline(getattr(arm, field.name))
        for field in dataclasses.fields(arm)
        if field.name != "note"
    }


def _recipe_source(recipe: "Recipe") -> str:
    module = sys.modules.get(f"concordant.recipes.{recipe.slug.replace('-', '_')}")
    return _source(module) if module is not None else repr(recipe)


def reached(root: Any) -> list[Any]:
    """Return the functions and classes of this package that a value holds or its code names, helpers included."""
    found: dict[int, Any] = {}
    open_ends = [root]
    seen: dict[int, Any] = {}  # holds the values, so that no identity is used twice
    while open_ends:
        value = open_ends.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, type | types.FunctionType):
            if _ours(value):
                open_ends.extend(_named_by(value))
                if "." not in value.__qualname__:  # a method's source is in its class's
                    found[id(value)] = value
        else:
            open_ends.extend(_held_by(value))
    return list(found.values())


def _ours(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    return module.startswith(_PACKAGE) and not module.startswith(_SKIPPED)


def _held_by(value: Any) -> Iterator[Any]:
    """Yield what a plain value holds; of an object also its class."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, tuple | list | set | frozenset):
        yield from value
    elif dataclasses.is_dataclass(value):
        yield type(value)
        yield from (getattr(value, field.name) for field in dataclasses.fields(value))
    elif getattr(value, "__wrapped__", None) is not None:
        yield value.__wrapped__
    elif callable(value) or _ours(type(value)):
        yield type(value)


def _named_by(value: Any) -> Iterator[Any]:
    """Yield what the code of a function, or of a class's methods, names in its module."""
    if isinstance(value, type):
        yield from (
            inspect.unwrap(member)
            for member in vars(value).values()
            if isinstance(member, types.FunctionType)
        )
        yield from (base for base in value.__bases__ if base is not object)
        return
    function = inspect.unwrap(value)
    for code in _codes(function.__code__):
        for name in code.co_names:
            thing = function.__globals__.get(name)
            if isinstance(thing, type | types.FunctionType):
                yield thing


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _source(part: Any) -> str:
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        return repr(part)
