"""Probes ask a model of the run (policy, reference, a world's scorer), batched and without gradient."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.core.seeds import Rng
from concordant.core.table import Table


@dataclass(frozen=True)
class Models:
    """The models that a probe may ask."""

    policy: Any
    reference: Any = None
    world: Any = None
    rng: Rng = field(default_factory=Rng)
    """Random stream of this step's probes."""


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


@dataclass(frozen=True)
class DenoisingErrors:
    """Noise every final image again and ask the reference for its denoising error (Diffusion-DPO).

    Columns `draw_time` (b n), `draw_noise` (b n d) and `ref_error` (b n), n = `draws`. Images of one group share times
    and noises, so that their errors can be compared.
    """

    draws: int = 4
    needs_reference: bool = True

    @property
    def columns(self) -> dict[str, str]:
        """The three columns."""
        return {"draw_time": "b n", "draw_noise": "b n d", "ref_error": "b n"}

    def __call__(self, models: Models, table: Table) -> dict[str, Tensor]:
        """Draw times and noises by group, and score them without gradient."""
        group, x = table["group"], table["sample"]
        time = models.rng.child("draw_time").uniform(group, self.draws).float()
        noise = models.rng.child("draw_noise").normal(group, self.draws * x.shape[1])
        noise = noise.reshape(table.rows, self.draws, x.shape[1])
        with torch.no_grad():
            error = models.reference.errors(x, table.fields["prompt"], time, noise)
        return {"draw_time": time, "draw_noise": noise, "ref_error": error}
