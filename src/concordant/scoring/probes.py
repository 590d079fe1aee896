"""Probes ask a model of the run (policy, reference, a world's scorer), batched and without gradient."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.core.table import Table


@dataclass(frozen=True)
class Models:
    """The models that a probe may ask."""

    policy: Any
    reference: Any = None
    world: Any = None


class Probe(Protocol):
    """Makes columns from a table by asking a model."""

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model must be kept."""
        ...

    @property
    def columns(self) -> dict[str, str]:
        """Columns it makes, with their axes."""
        ...

    def __call__(self, models: Models, table: Table) -> dict[str, Tensor]:
        """Return the values of its columns."""
        ...


@dataclass(frozen=True)
class LogProb:
    """Log-probability of every sampled token under the reference or the current policy, as column `name` [b s]."""

    of: Literal["reference", "policy"] = "reference"
    name: str = "ref_logp"

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model must be kept."""
        return self.of == "reference"

    @property
    def columns(self) -> dict[str, str]:
        """The one column."""
        return {self.name: "b s"}

    def __call__(self, models: Models, table: Table) -> dict[str, Tensor]:
        """Score without gradient; for the model that sampled, this equals `logp` within float tolerance."""
        model = models.reference if self.of == "reference" else models.policy
        if model is None:
            raise ConfigError(
                "a reference log-probability needs a reference; give the arm reference=Reference(...)"
            )
        with torch.no_grad():
            return {self.name: model.score(table)}


@dataclass(frozen=True)
class WorldScore:
    """A column that the world's own frozen model provides, e.g. step scores [b n]."""

    name: str
    axes: str = "b n"
    needs_reference: bool = False

    @property
    def columns(self) -> dict[str, str]:
        """The one column."""
        return {self.name: self.axes}

    def __call__(self, models: Models, table: Table) -> dict[str, Tensor]:
        """Ask the world's scorer of this name."""
        scorers = getattr(models.world, "scorers", {})
        if self.name not in scorers:
            raise ConfigError(
                f"the world {models.world.name!r} has no scorer {self.name!r}; it has: {sorted(scorers) or 'none'}"
            )
        with torch.no_grad():
            return {self.name: scorers[self.name](table)}
