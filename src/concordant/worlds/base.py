"""What a world is, and how one is found by name."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from concordant.core.errors import ConfigError, nearest
from concordant.core.table import Table

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Task:
    """One problem to be solved by rollouts."""

    id: int
    """Stable across steps and runs: equal problem and equal wording have equal ids."""
    prompt: str | list[dict[str, str]]
    """Plain text, or chat messages that go through the tokenizer's chat template."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Handed to reward functions by name (answer, numbers, ...). All tasks of a world have the same keys."""


class World(Protocol):
    """An embedded setting: tasks, a base policy that ships with it, rewards, oracle metrics and failure
    meters.
    """

    name: str
    config: Any
    rewards: Mapping[str, Callable[..., float | None]]
    columns: Mapping[str, str]
    """Columns that `annotate` adds, with their axes."""
    scorers: Mapping[str, Callable[[Table], Any]]
    """Frozen models of the world that probes may ask, by the column they make."""

    def tasks(self, split: Split, seed: int = 0, step: int = 0, count: int = 1) -> list[Task]:
        """Draw tasks: train ones are addressed by (seed, step), test ones are fixed and disjoint from
        them.
        """
        ...

    def policy(self, **options: Any) -> Any:
        """Load the base policy."""
        ...

    def annotate(self, table: Table) -> Table:
        """Add the world's columns to freshly sampled rows."""
        ...

    def evaluate(self, table: Table) -> dict[str, list[float]]:
        """Judge every row by the oracle; no arm is trained on these numbers."""
        ...

    def meters(self, table: Table) -> dict[str, float]:
        """Measure how strongly the world shows the diseases that methods claim to cure."""
        ...

    def validate(self) -> list[str]:
        """Check the world without any model; an empty list means sound."""
        ...


def names() -> list[str]:
    """Return the names of all worlds, found by folder: `lm_arithmetic` is `lm/arithmetic`."""
    package = importlib.import_module("concordant.worlds")
    return sorted(
        module.name.replace("_", "/", 1) for module in pkgutil.iter_modules(package.__path__) if module.ispkg
    )


def get(name: str, options: Mapping[str, Any] | None = None) -> World:
    """Build a world by name.

    Args:
        name: for instance `lm/arithmetic`.
        options: overrides of fields of the world's frozen configuration.

    Returns:
        The world. An unknown name or option is refused with the nearest known one.
    """
    if name not in names():
        raise ConfigError(f"no world {name!r}; {nearest(name, names())}")
    module = importlib.import_module(f"concordant.worlds.{name.replace('/', '_', 1)}")
    known = [entry.name for entry in dataclasses.fields(module.Config)]
    given = dict(options or {})
    for key in given:
        if key not in known:
            raise ConfigError(f"world {name!r} has no option {key!r}; {nearest(key, known)}")
    world: World = module.World(module.Config(**given))
    return world
