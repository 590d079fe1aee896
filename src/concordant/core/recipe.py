"""A recipe: a world, a method, its baseline and honest controls, and the claims that an experiment can refute."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from concordant.core.chain import Chain
from concordant.core.errors import ConfigError, nearest

Profile = Literal["smoke", "quick", "full"]
PROFILES: tuple[Profile, ...] = ("smoke", "quick", "full")


@dataclass(frozen=True)
class TrainConfig:
    """Budget and optimiser of one run; equal in all arms unless an arm says so."""

    steps: int = 100
    """Tables sampled (each gives `epochs * updates` optimiser steps)."""
    prompts: int = 12
    """Prompts a step."""
    group_size: int = 8
    """Rollouts a prompt."""
    max_new_tokens: int = 56
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Sampling temperature; log-probabilities use the same one."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    warmup: int = 5
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradient norm above which the gradient is scaled down."""
    epochs: int = 1
    """Passes over each table."""
    updates: int = 1
    """Optimiser steps a pass (mini-batches by row id)."""
    micro_batch: int = 8192
    """Largest forward pass, in padded tokens; gradients are accumulated over the pieces."""
    eval_every: int = 20
    """Steps between evaluations on held-out prompts; the last step is always evaluated."""
    eval_prompts: int = 256
    """Held-out prompts of an evaluation."""
    eval_samples: int = 2
    """Rollouts for each held-out prompt, at temperature 1."""
    final_samples: int = 4
    """The same for the evaluation after the last step, whose numbers are compared."""
    save_every: int = 20
    """Steps between checkpoints."""
    log_rollouts: int = 64
    """Rollouts a step that are stored with every signal and column."""
    pool: int = 0
    """Draw training prompts from a fixed pool of this many, in turn (0: fresh prompts every step)."""
    token_budget: int = 0
    """Stop when this many tokens were sampled for training (0: no limit); makes costly samplers comparable."""
    evaluation_budget: int = 0
    """Stop when sampling for training took this many network evaluations (0: no limit; generators of images)."""
    reward_budget: int = 0
    """Stop when training took this many reward calls (0: no limit)."""

    def __post_init__(self) -> None:
        positive = (
            "prompts",
            "group_size",
            "max_new_tokens",
            "epochs",
            "updates",
            "micro_batch",
            "eval_every",
        )
        for name in (*positive, "save_every", "eval_prompts", "eval_samples", "final_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        budgets = ("token_budget", "evaluation_budget", "reward_budget")
        for name in ("steps", "warmup", "weight_decay", "log_rollouts", "pool", *budgets):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "max_grad_norm", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Reference:
    """The reference model: `fixed` copy of the start, `ema` (moves `1 - decay` towards the policy every `every` steps),
    or `each_table` (a fresh copy before each table).
    """

    kind: Literal["fixed", "ema", "each_table"] = "fixed"
    decay: float = 0.995
    every: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1 or self.every < 1:
            raise ConfigError(f"reference: decay must lie in [0, 1] and every be at least 1, got {self}")


@dataclass(frozen=True)
class Arm:
    """One way to train: rewards, chain, objective, and what else differs from the baseline."""

    chain: Chain
    rewards: tuple[str | Callable[..., Any], ...]
    objective: Any
    sampler: Any = None
    probes: tuple[Any, ...] = ()
    learners: tuple[Any, ...] = ()
    reference: Reference | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.needs_reference and self.reference is None:
            raise ConfigError("this arm reads a reference model; give it reference=Reference(...)")

    @property
    def needs_reference(self) -> bool:
        """Whether objective, sampler or a probe asks a reference model."""
        return any(
            getattr(part, "needs_reference", False) for part in (self.objective, self.sampler, *self.probes)
        )


@dataclass(frozen=True)
class Claim:
    """`arm` beats `versus` on an oracle metric; with what would refute it."""

    metric: str
    versus: str
    arm: str = ""
    direction: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    """Smallest difference that matters; an interval wholly below it refutes the claim."""
    refuted_by: str = ""
    meter: str | None = None
    """Failure meter that must show the disease at the start."""
    disease: float = 0.0
    """Value the meter must reach for the claim to be tested at all."""


@dataclass(frozen=True)
class Recipe:
    """Everything a comparison needs. The first arm is the method; its name is the slug."""

    title: str
    world: str
    arms: Mapping[str, Arm]
    kind: Literal["system", "baseline"] = "system"
    slug: str = ""
    """Filled in from the file name."""
    source: str = ""
    baseline: str = "grpo"
    controls: tuple[str, ...] = ()
    quick_arms: tuple[str, ...] = ()
    """Arms of smoke and quick; empty means all."""
    claims: tuple[Claim, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    world_options: Mapping[str, Any] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    full_world: Mapping[str, Any] = field(default_factory=dict)
    """Options of the world that the profile `full` changes, for instance a larger base."""

    def __post_init__(self) -> None:
        names = {claim.arm or next(iter(self.arms)) for claim in self.claims} | {
            c.versus for c in self.claims
        }
        for name in (*sorted(names), *self.controls, *self.quick_arms):
            self.arm(name)
        for profile in self.profiles:
            if profile not in PROFILES:
                raise ConfigError(f"{self.title}: unknown profile {profile!r}; {nearest(profile, PROFILES)}")

    def arm(self, name: str | None = None) -> Arm:
        """Return an arm by name; None is the method."""
        name = name or next(iter(self.arms))
        if name not in self.arms:
            raise ConfigError(f"{self.slug or self.title} has no arm {name!r}; {nearest(name, self.arms)}")
        return self.arms[name]

    def arms_of(self, profile: str) -> tuple[str, ...]:
        """Return the arms that a profile compares."""
        return self.quick_arms if self.quick_arms and profile != "full" else tuple(self.arms)


SMOKE: Mapping[str, Any] = {
    "steps": 2,
    "prompts": 4,
    "group_size": 8,
    "eval_prompts": 16,
    "eval_samples": 1,
    "final_samples": 1,
    "eval_every": 2,
    "save_every": 2,
    "log_rollouts": 16,
}
FULL: Mapping[str, Any] = {"steps": 200, "eval_prompts": 512}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"smoke": SMOKE, "quick": {}, "full": FULL}


def train_config(recipe: Recipe, profile: str, arm: Arm) -> tuple[TrainConfig, dict[str, str]]:
    """Resolve the budget: defaults, then the profile, the recipe's profile, the arm; with the source of each value."""
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; {nearest(profile, PROFILES)}")
    quick = recipe.profiles.get("quick", {})
    own = {k: v for k, v in arm.train.items() if profile != "smoke" or k != "steps"}  # smoke stays short
    layers = {
        "recipe": quick,
        "profile": {**DEFAULTS[profile], **(recipe.profiles.get(profile, {}) if profile != "quick" else {})},
        "arm": own,
    }
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers.items():
        for key, value in layer.items():
            if key not in TrainConfig.__dataclass_fields__:
                raise ConfigError(
                    f"{recipe.slug}: no training option {key!r}; {nearest(key, TrainConfig.__dataclass_fields__)}"
                )
            values[key] = value
            sources[key] = source
    return TrainConfig(**values), sources


@dataclass(frozen=True)
class PolicyOptions:
    """Where and how the policy runs."""

    model: str | None = None
    """Local folder or hub id; None is the world's own base."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora_rank: int = 0
    """Rank of LoRA adapters; 0 trains all weights."""
    lora_alpha: float = 16.0


@dataclass(frozen=True)
class ScoringConfig:
    """How rewards are run. A world's own run in the trainer's process unless they say otherwise."""

    workers: int = 2
    """Worker processes for the user's rewards."""
    timeout: float = 0.0
    """Seconds for one attempt of any reward; 0 leaves each reward its own."""
    missing: Literal["", "exclude", "drop-rollout", "drop-group", "fail"] = ""
    """What becomes of rows without a value, for all rewards; empty leaves each reward its own policy."""
    cache: str = ""
    """File that keeps scores from one run to the next; empty is none."""
    memory: int = 16384
    """Limit on the address space of a worker, in MB; 0 is none, which a reward that uses CUDA needs."""
    overlap: int = 1
    """Parts in which a step's prompts are sampled, each scored while the next one is sampled."""

    def __post_init__(self) -> None:
        for name in ("workers", "overlap"):
            if getattr(self, name) < 1:
                raise ConfigError(f"scoring.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("timeout", "memory"):
            if getattr(self, name) < 0:
                raise ConfigError(f"scoring.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class Experiment:
    """One fully resolved run: recipe arm, world, budget, policy and seed, with the source of every changed value."""

    slug: str
    arm_name: str
    arm: Arm
    world: str
    world_options: Mapping[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    seed: int = 0
    profile: str = "quick"
    sources: Mapping[str, str] = field(default_factory=dict)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)

    @property
    def folder(self) -> str:
        """Name of the run folder below the output folder."""
        return f"{self.slug}/{self.arm_name}/seed{self.seed}"
