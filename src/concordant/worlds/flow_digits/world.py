"""The digits world: draw the handwritten digit that the prompt asks for, judged by classifiers on disjoint halves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
from torch import Tensor

from concordant.core.errors import ConfigError, nearest
from concordant.core.seeds import address
from concordant.core.table import Table
from concordant.policies.load import find_device
from concordant.policies.networks import check_files, load_network
from concordant.worlds.base import Task
from concordant.worlds.flow_digits import data, judges, meters, rewards
from concordant.worlds.flow_digits.evaluators import BASE, log_probabilities, stack
from concordant.worlds.flow_digits.prompts import LIMIT, ClassReader, Code, CodeReader, class_prompt

_ID = (1 << 62) - 1
_SOUND = {"cls": 0.95, "gold": 0.97}
"""Accuracy that a classifier must have on the half that it was not fitted on."""


@dataclass(frozen=True)
class DigitsConfig:
    """Options of the world."""

    model: Literal["mlp", "dit", "ddim"] = "mlp"
    """Base policy: velocity perceptron (fast), velocity transformer, or noise-predicting perceptron for DDIM, whose
    betas grow linearly from 1e-4 to 0.02 over 1,000 timesteps; it is meant for 20 steps."""
    prompts: Literal["class", "attributes"] = "class"
    """What prompts ask for: a class, or a class with a stroke thickness and a slant (the base `ddim` only)."""
    train_prompts: int = 4096
    """Different training prompts with attributes; a smaller set is the beginning of a larger one. Classes are ten."""
    test_prompts: int = 512
    """Largest number of test prompts that can be asked for."""
    shift: float = 1.0
    """Shift of the noise levels of a flow."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1 is none."""
    reduce: Literal["mean", "sum"] = "mean"
    """How log-probabilities of a step are reduced over the 64 latent dimensions."""

    def __post_init__(self) -> None:
        choices = {
            "model": ("mlp", "dit", "ddim"),
            "prompts": ("class", "attributes"),
            "reduce": ("mean", "sum"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"no {name} {getattr(self, name)!r}; {nearest(str(getattr(self, name)), known)}"
                )
        if (self.model == "ddim") != (self.prompts == "attributes"):
            raise ConfigError(
                f"the base {self.model!r} was not fitted on prompts of kind {self.prompts!r}; 'ddim' goes with "
                "prompts='attributes', 'mlp' and 'dit' with prompts='class'"
            )
        if self.model == "ddim" and self.shift != 1.0:
            raise ConfigError("shift belongs to flows; with model='ddim' leave it at 1")
        for name in ("train_prompts", "test_prompts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class DigitsWorld:
    """Handwritten digits of 8 x 8 pixels: `a handwritten 3`, or `a handwritten 3, thickness 0.40, slant -0.75`.

    The bases have seen 30 % wrong prompts, so that they draw the prompted class in about two of three samples. The
    reward classifier and the gold one were fitted on disjoint halves of the data.
    """

    config: DigitsConfig = DigitsConfig()
    name: str = "flow/digits"
    modality: str = "image"

    @property
    def rewards(self) -> Mapping[str, Callable[..., Any]]:
        """Named reward functions of the field `image` and of what the prompt asks for; see `rewards`."""
        return rewards.make(self.config.prompts == "attributes")

    @property
    def judges(self) -> Mapping[str, judges.Judge]:
        """Named judges of pairs of images, `prefer(image_left, image_right, label)`; see `judges`."""
        return judges.make()

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
        """Draw tasks; classes take turns, so that any `count` holds nearly equal shares.

        Train tasks depend on (seed, step) only: a larger `count` continues a smaller one. Test tasks are fixed. There
        are ten prompts of classes, so both splits have the same; no test prompt with attributes is a train prompt.
        """
        if split not in ("train", "test"):
            raise ConfigError(f"split {split!r} is neither 'train' nor 'test'")
        if split == "test" and count > self.config.test_prompts:
            raise ConfigError(
                f"{count} test prompts were asked for, the world is set to at most {self.config.test_prompts}; "
                "raise test_prompts or ask for fewer"
            )
        if self.config.prompts == "class":
            return [class_task(label) for label in self._turns(split, seed, step, count)]
        if split == "test":
            return [code_task(code_at("test", i)) for i in range(count)]
        key, pool = address("train", seed, step), self.config.train_prompts
        return [code_task(code_at("train", place)) for place in _places(key, pool, count)]

    def _turns(self, split: str, seed: int, step: int, count: int) -> list[int]:
        order = list(range(data.CLASSES))
        if split == "train":
            Random(address("train", seed, step)).shuffle(order)
        return [order[i % data.CLASSES] for i in range(count)]

    def policy(self, device: str = "cpu", dtype: str = "float32", lora: Any = None) -> Any:
        """Load the shipped base.

        Args:
            device: for instance `cuda:0`.
            dtype: float32 only; steps of a flow are not computed in less.
            lora: None; a network of this size is trained whole.
        """
        from concordant.policies.flow import DDIMSchedule, FlowPolicy, FlowSchedule

        if lora is not None:
            raise ConfigError(
                "the bases of flow/digits have at most a million weights and are trained whole; set lora_rank to 0"
            )
        if dtype != "float32":
            raise ConfigError(
                f"the bases of flow/digits run in float32, got dtype {dtype!r}; leave dtype as it is"
            )
        config, network = self.config, self.network().to(find_device(device))
        made = DDIMSchedule(network.alpha_bar) if network.alpha_bar else FlowSchedule(config.shift)
        return FlowPolicy(network, schedule=made, guidance=config.guidance, reduce=config.reduce)

    def network(self) -> Any:
        """Load the network of the shipped base, trainable, in evaluation mode."""
        reader = CodeReader() if self.config.prompts == "attributes" else ClassReader()
        return load_network(BASE, self.config.model, reader)

    def annotate(self, table: Table) -> Table:
        """Return the table as it is."""
        return table

    def evaluate(self, table: Table) -> dict[str, list[float]]:
        """Judge every row and the whole set by the gold evaluators; see `meters.evaluate`."""
        return meters.evaluate(table)

    def meters(self, table: Table) -> dict[str, float]:
        """Measure the world's diseases on sampled rows; see `meters.meters`."""
        return meters.meters(table)

    def validate(self) -> list[str]:
        """Check that shipped files are those that were measured, that halves and splits are disjoint, and that each
        classifier knows the half that it was not fitted on.
        """
        found = check_files(BASE)
        if found:
            return found
        halves = [data.half(name).images.reshape(-1, data.SIDE**2) for name in ("a", "b")]
        rows = [set(map(bytes, half)) for half in halves]
        found += ["an image is in both halves"] * len(rows[0] & rows[1])
        for name, other in (("cls", "b"), ("gold", "a")):
            digits = data.half(other)
            guess = log_probabilities(name, stack(list(digits.images))[0]).argmax(1).numpy()
            share = float(np.mean(guess == digits.labels))
            if share < _SOUND[name]:
                found.append(f"{name} knows {share:.3f} of half {other}, expected at least {_SOUND[name]}")
        if self.config.prompts == "attributes":
            train = {code_at("train", place).text for place in range(self.config.train_prompts)}
            test = {task.prompt for task in self.tasks("test", count=self.config.test_prompts)}
            found += [f"{prompt}: in both splits" for prompt in sorted(train & test)]
        return found


def _places(key: int, pool: int, count: int) -> list[int]:
    """Places in a pool, each once in every round through it; a larger count continues a smaller one."""
    found = list[int]()
    while len(found) < count:
        order = list(range(pool))
        Random(address(key, len(found) // pool)).shuffle(order)
        found += order
    return found[:count]


def code_at(split: str, place: int) -> Code:
    """Return the prompt with attributes at a place of a split; prompts with an even hash are the test ones.

    Classes take turns; thickness and slant are uniform.
    """
    for attempt in range(64):
        rng = Random(address("flow/digits", split, place, attempt))
        thickness, slant = (round(rng.uniform(-LIMIT, LIMIT), 2) + 0.0 for _ in range(2))
        code = Code(place % data.CLASSES, thickness, slant)
        if (address(code.text) % 2 == 0) == (split == "test"):
            return code
    raise AssertionError("half of all prompts belong to each split")


def class_task(label: int) -> Task:
    """Make the task of a class; field: label."""
    prompt = class_prompt(label)
    return Task(address("flow/digits", prompt) & _ID, prompt, {"label": label})


def code_task(code: Code) -> Task:
    """Make the task of a prompt with attributes; fields: label, thickness, slant."""
    return Task(address("flow/digits", code.text) & _ID, code.text, code._asdict())
