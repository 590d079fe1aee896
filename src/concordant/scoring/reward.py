"""What a reward is: how authors write one, what it may return, and what the engine is told about it.

Nothing here imports torch, so that worker processes start quickly.
"""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

from concordant.core.errors import RewardError, nearest

Level = Literal["rollout", "segment", "step", "check", "pair", "group", "batch"]
Style = Literal["fields", "batch"]
Missing = Literal["exclude", "drop-rollout", "drop-group", "fail"]
Order = Literal["random", "both", "index"]

LEVELS: tuple[Level, ...] = ("rollout", "segment", "step", "check", "pair", "group", "batch")
POLICIES: tuple[Missing, ...] = ("exclude", "drop-rollout", "drop-group", "fail")
ORDERS: tuple[Order, ...] = ("random", "both", "index")
SIDES = ("left", "right")
"""What the parameters of a reward of pairs end in, e.g. `image_left` and `image_right`."""
USER = "concordant_user_"
"""What the names of modules that were loaded from a path begin with."""
_MARK = "__concordant_reward__"
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score with what is known about it; a reward may return one in place of a number.

    `score` None means that the judge abstained: the value is missing, with `detail["reason"]` as its reason if given.
    """

    score: float | None
    confidence: float | None = None
    """How sure the judge is, in [0, 1]; None where it does not say."""
    kind: str = ""
    """What sort of judgement it is, e.g. `exact`, `parsed`, `judge`."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Plain data for the record (JSON types only)."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a reward sees of the run when it has a parameter `context`."""

    step: int = 0
    total: int = 1
    seed: int = 0
    """Seed of this call: from the run's seed, the step and the row (the group, for rewards of groups)."""
    policy_version: int = 0
    """Updates the policy has had."""

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.step / max(self.total, 1)

    @property
    def rng(self) -> Random:
        """A fresh generator from `seed`: same run, step and row, same numbers."""
        return Random(self.seed)


@dataclass(frozen=True)
class Reward:
    """A reward and how to run it.

    `style="fields"`: called with the fields it names, e.g. `f(completion, answer) -> float | None`; at the levels
    `group` and `batch` each field is a list and so is what it returns.
    `style="batch"`: TRL's calling convention, `f(prompts, completions, **columns) -> list[float | None]`; at the level
    `pair`, one call with a list over all pairs for each argument.
    """

    name: str
    function: Callable[..., Any]
    style: Style = "fields"
    level: Level = "rollout"
    """What is judged at a time. `segment` and `step` return one value for each segment or trained step of the row,
    `check` one for each check of a suite (tests of a program, items of a rubric); `group` and `batch` see all members
    of the group, or all rows, and return one value for each. `pair` compares two members of a group: the function names
    `image_left` and `image_right` for the field `image`, and without an ending what all members share (`prompt`); it
    returns the share that left wins, in [0, 1]: 1 left is better, 0.5 a tie."""
    timeout: float = 10.0
    """Seconds for one attempt, from the moment it starts (waiting in a queue does not count)."""
    retries: int = 2
    """Further attempts after a transient error (`ConnectionError`, `TimeoutError`, `TransientError`)."""
    concurrency: int = 0
    """Calls at once: over all workers, and for an `async` reward the number of calls in flight. 0: one per worker, for
    async rewards 16."""
    rate: float = 0.0
    """Largest number of calls started in a second, over all workers; 0 is no limit."""
    missing: Missing = "exclude"
    """What becomes of rows without a value: `exclude` leaves the column missing (the chain decides), `drop-rollout`
    takes the row out, `drop-group` its whole group, `fail` stops the run."""
    cache: bool = True
    """Whether equal inputs may share one call (in a batch, and in the cache where there is one)."""
    version: str = ""
    """Part of the cache key that the code does not show, e.g. the revision of a judge model."""
    inline: bool = False
    """Run in the caller's process: no timeout, no isolation. For small trusted functions."""
    order: Order = "random"
    """At the level `pair`, who is shown on the left: chosen at random for each pair from the run's seed and the ids of
    both rows; `both` asks twice and takes the mean; `index` always shows the earlier row on the left."""
    pairs: Literal["all"] = "all"
    """At the level `pair`, which pairs of a group are asked about: `all`, each once."""
    origin: str = ""
    """`file.py:name` where the function was loaded from; worker processes load it from there again."""

    def __post_init__(self) -> None:
        _check_choice("level", self.level, LEVELS)
        _check_choice("missing", self.missing, POLICIES)
        _check_choice("order", self.order, ORDERS)
        _check_choice("pairs", self.pairs, ("all",))
        if not self.timeout > 0:
            raise RewardError(f"reward {self.name!r}: timeout must be a positive number, got {self.timeout}")
        for option in ("retries", "concurrency", "rate"):
            if getattr(self, option) < 0:
                raise RewardError(
                    f"reward {self.name!r}: {option} must not be negative, got {getattr(self, option)}"
                )
        if self.style == "batch" and self.level in ("segment", "step", "check"):
            raise RewardError(
                f"reward {self.name!r}: a function with `completions` judges rollouts, not a {self.level}; "
                "name the fields one by one instead"
            )
        if self.order != "random" and self.level != "pair":
            raise RewardError(
                f"reward {self.name!r}: order={self.order!r} has no meaning at level {self.level!r}"
            )

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of the call."""
        return inspect.signature(self.function).parameters

    @property
    def is_async(self) -> bool:
        """Whether calling it gives a coroutine."""
        called = self.function if inspect.isroutine(self.function) else type(self.function).__call__
        return inspect.iscoroutinefunction(called)

    def __reduce__(self) -> Any:
        """Pickle by origin where there is one: a module loaded from a path cannot be imported by name."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.origin:
            del options["function"]
        return _revive, (options,)


class TransientError(Exception):
    """Raise this in a reward when another attempt may succeed, e.g. a server said that it is busy."""


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RewardError(f"unknown {name} {value!r}; {nearest(value, choices)}")


def _revive(options: dict[str, Any]) -> Reward:
    if "function" not in options:
        options["function"] = load_function(options["origin"])
    return Reward(**options)


def reward(function: _F | None = None, /, **options: Any) -> Any:
    """Declare how a reward function wants to be run; the function itself stays as it is.

    Args:
        function: the function, when used without brackets.
        options: fields of `Reward` besides function and origin.

    >>> @reward(level="group", timeout=2)
    ... def shortest(completion):
    ...     least = min(map(len, completion))
    ...     return [float(len(text) == least) for text in completion]
    >>> as_reward(shortest).level, shortest(["a", "bb"])
    ('group', [1.0, 0.0])
    """
    known = {f.name for f in fields(Reward)} - {"function", "origin"}
    for name in options:
        if name not in known:
            raise RewardError(f"@reward has no option {name!r}; {nearest(name, known)}")

    def mark(inner: _F) -> _F:
        setattr(inner, _MARK, options)
        return inner

    return mark if function is None else mark(function)


def as_reward(function: Any, name: str | None = None, **options: Any) -> Reward:
    """Wrap a function, with the options of its `@reward` and then of `options`.

    A function with a parameter `completions` follows TRL's convention and, unless it says otherwise, is called once
    for each group: it may compare members, and only the group with the fault goes missing.
    """
    if isinstance(function, Reward):
        return function
    if not callable(function):
        raise RewardError(f"a reward must be callable, got {function!r}")
    called = function if inspect.isroutine(function) else type(function).__call__
    chosen = {**declared(function), **options}
    trl = "completions" in inspect.signature(called).parameters and chosen.get("level") != "pair"
    chosen.setdefault("style", "batch" if trl else "fields")
    chosen.setdefault("level", "group" if trl else "rollout")
    own = chosen.pop("name", None) or getattr(function, "__name__", type(function).__name__)
    return Reward(name or str(own), function, **chosen)


def declared(function: Any) -> Mapping[str, Any]:
    """Return the options that `@reward` gave a function."""
    options: Mapping[str, Any] = getattr(function, _MARK, {})
    return options


def load_reward(text: str, **options: Any) -> Reward:
    """Load `file.py:name`."""
    function = load_function(text)
    if isinstance(function, Reward):
        return function
    path, _, name = text.rpartition(":")
    return as_reward(function, **{"name": name, **options}, origin=f"{Path(path).resolve()}:{name}")


def load_function(text: str) -> Callable[..., Any]:
    """Load what `file.py:name` names; the function's own import errors are shown."""
    path, _, name = text.rpartition(":")
    file = Path(path)
    if not path or not file.is_file():
        raise RewardError(f"a reward is given as FILE.py:FUNCTION; no file {path or text!r}")
    names = vars(load_module(file))
    found = {key: value for key, value in names.items() if callable(value) and not key.startswith("_")}
    if name not in found:
        raise RewardError(f"{file} has no function {name!r}; {nearest(name, found)}")
    function: Callable[..., Any] = found[name]
    return function


def load_module(file: Path) -> Any:
    """Import a file under a name of its own; its folder is importable meanwhile, as if it were run as a script.

    A file is imported once, and again when it has changed.
    """
    status = file.stat()
    return _load(file.resolve(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _load(file: Path, modified: int, size: int) -> Any:
    spec = importlib.util.spec_from_file_location(f"{USER}{file.stem}", file)
    if spec is None or spec.loader is None:
        raise RewardError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look modules up by name
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # foreign code: tell the user which of their lines failed
        del sys.modules[spec.name]
        raise RewardError(f"importing {file} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module


def check_fields(reward: Reward, names: Sequence[str]) -> None:
    """Refuse a reward that asks for a field the data does not have."""
    if reward.level == "pair":
        names = [*names, *(f"{name}_{side}" for name in names for side in SIDES)]
    elif reward.style == "batch":
        return
    for parameter in reward.parameters.values():
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and parameter.name not in (*names, "context"):
            raise RewardError(
                f"reward {reward.name!r} asks for the field {parameter.name!r}, which the data does not have; "
                f"{nearest(parameter.name, names)}"
            )
