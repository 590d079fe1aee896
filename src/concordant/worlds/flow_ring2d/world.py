"""The ring: draw a point of the prompted one of eight Gaussians, with the exact flow at hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from concordant.core.errors import ConfigError, nearest
from concordant.core.seeds import address
from concordant.core.table import Table
from concordant.policies.load import find_device
from concordant.policies.networks import check_files, load_network
from concordant.worlds.base import Task
from concordant.worlds.flow_ring2d import meters
from concordant.worlds.flow_ring2d.velocity import COMPONENTS, RingReader, RingVelocity, prompt_of

BASE = Path(__file__).parent / "base"
_ID = (1 << 62) - 1


@dataclass(frozen=True)
class RingConfig:
    """Options of the world."""

    model: Literal["mlp", "exact"] = "mlp"
    """Base policy: a small perceptron that can be trained, or the exact velocity, which cannot."""
    test_prompts: int = 512
    """Largest number of test prompts that can be asked for."""
    shift: float = 1.0
    """Shift of the noise levels."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1 is none."""
    reduce: Literal["mean", "sum"] = "mean"
    """How log-probabilities of a step are reduced over the two dimensions."""

    def __post_init__(self) -> None:
        for name, known in {"model": ("mlp", "exact"), "reduce": ("mean", "sum")}.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"no {name} {getattr(self, name)!r}; {nearest(str(getattr(self, name)), known)}"
                )
        if self.test_prompts < 1:
            raise ConfigError(f"test_prompts must be at least 1, got {self.test_prompts}")


@dataclass(frozen=True)
class RingWorld:
    """Eight Gaussians on a ring: `a point of component 3`.

    The base has seen 30 % wrong prompts. Everything about this world is known in closed form, so that samplers and
    estimators can be tested exactly.
    """

    config: RingConfig = RingConfig()
    name: str = "flow/ring2d"

    @property
    def rewards(self) -> Mapping[str, Callable[..., Any]]:
        """Named reward functions of the fields `image` and `component`."""
        return meters.REWARDS

    @property
    def judges(self) -> Mapping[str, Callable[..., list[float]]]:
        """There is no judge of pairs."""
        return {}

    @property
    def columns(self) -> Mapping[str, str]:
        """`annotate` adds no column."""
        return {}

    @property
    def scorers(self) -> Mapping[str, Callable[[Table], Tensor]]:
        """No model of this world can be asked."""
        return {}

    def tasks(
        self, split: Literal["train", "test"], seed: int = 0, step: int = 0, count: int = 1
    ) -> list[Task]:
        """Draw tasks; components take turns. There are eight prompts, so both splits have the same.

        Train tasks depend on (seed, step) only: a larger `count` continues a smaller one. Test tasks are fixed.
        """
        if split not in ("train", "test"):
            raise ConfigError(f"split {split!r} is neither 'train' nor 'test'")
        if split == "test" and count > self.config.test_prompts:
            raise ConfigError(
                f"{count} test prompts were asked for, the world is set to at most {self.config.test_prompts}; "
                "raise test_prompts or ask for fewer"
            )
        order = list(range(COMPONENTS))
        if split == "train":
            Random(address("train", seed, step)).shuffle(order)
        return [component_task(order[i % COMPONENTS]) for i in range(count)]

    def policy(self, device: str = "cpu", dtype: str = "float32", lora: Any = None) -> Any:
        """Load the base; see `RingConfig.model`.

        Args:
            device: for instance `cuda:0`.
            dtype: float32 only.
            lora: None; a network of this size is trained whole.
        """
        from concordant.policies.flow import FlowPolicy, FlowSchedule

        if lora is not None:
            raise ConfigError("the base of flow/ring2d is trained whole; set lora_rank to 0")
        if dtype != "float32":
            raise ConfigError(
                f"the base of flow/ring2d runs in float32, got dtype {dtype!r}; leave dtype as it is"
            )
        config = self.config
        network = self.network().to(find_device(device))
        schedule = FlowSchedule(config.shift)
        return FlowPolicy(network, schedule=schedule, guidance=config.guidance, reduce=config.reduce)

    def network(self) -> Any:
        """Load the network of the base."""
        return RingVelocity() if self.config.model == "exact" else load_network(BASE, "mlp", RingReader())

    def annotate(self, table: Table) -> Table:
        """Return the table as it is."""
        return table

    def evaluate(self, table: Table) -> dict[str, list[float]]:
        """Judge every row exactly; see `meters.evaluate`."""
        return meters.evaluate(table)

    def meters(self, table: Table) -> dict[str, float]:
        """Measure the world's diseases on sampled rows; see `meters.meters`."""
        return meters.meters(table)

    def validate(self) -> list[str]:
        """Check the shipped files, and that the exact flow carries noise to the prompted component."""
        found = check_files(BASE)
        network, count = RingVelocity(), 64
        tasks = self.tasks("test", count=COMPONENTS)
        codes = network.encode([task.prompt for task in tasks]).repeat_interleave(count, 0)
        x = torch.randn(len(codes), 2, generator=torch.Generator().manual_seed(0))
        for step in range(50):
            x = x - network(x, torch.full((len(x),), 1 - step / 50), codes) / 50
        wanted = [task.fields["component"] for task in tasks for _ in range(count)]
        reached = sum(value > -0.5 for value in meters.distance(list(network.decode(x).numpy()), wanted))
        if reached != len(wanted):
            found.append(f"{len(wanted) - reached} of {len(wanted)} exact paths end at another component")
        return found


def component_task(component: int) -> Task:
    """Make the task of a component; field: component."""
    prompt = prompt_of(component)
    return Task(address("flow/ring2d", prompt) & _ID, prompt, {"component": component})
