"""Recipes, one file per method, named by its slug (`grpo-care` is grpo_care.py); found by file name, no registry."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from concordant.core.errors import ConfigError, nearest
from concordant.core.recipe import Recipe


def slugs() -> list[str]:
    """Return the slugs of all recipes, sorted."""
    return sorted(
        m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")
    )


@functools.cache
def get(slug: str) -> Recipe:
    """Return a recipe by slug; an unknown one names the nearest."""
    recipe = _module(slug).recipe
    return dataclasses.replace(recipe, slug=slug)


def method(slug: str) -> Callable[..., Any]:
    """Return the method function of a recipe: it returns a chain and knows no world."""
    function: Callable[..., Any] = getattr(_module(slug), slug.replace("-", "_"))
    return function


def _module(slug: str) -> Any:
    if slug not in slugs():
        raise ConfigError(f"no recipe {slug!r}; {nearest(slug, slugs())}")
    return importlib.import_module(f"{__name__}.{slug.replace('-', '_')}")
