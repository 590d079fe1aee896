"""The user's own world: prompts from a JSONL file, the user's model, the user's reward functions.

The model is a language model, or a folder with a pipeline of diffusers, which makes images.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng, address
from concordant.core.table import Table
from concordant.worlds.base import Task

_ANSWER = r"<answer>\s*(.*?)\s*</answer>|\\boxed\{([^{}]*)\}"
_MAX_ID = (1 << 62) - 1


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line, each with a `prompt` (text or chat messages); errors name the line."""
    if not path.is_file():
        raise DataError(f"no data file {path}; give a JSONL file with a `prompt` in each line")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})"
            ) from None
        _check_row(row, rows, f"{path}, line {number}")
        rows.append(row)
    if len(rows) < 2:
        raise DataError(
            f"{path} holds {len(rows)} prompts; at least 2 are needed (one is held out for evaluation)"
        )
    return rows


@functools.lru_cache(maxsize=4)
def _read_once(path: str) -> list[dict[str, Any]]:
    return read_jsonl(Path(path))


def _check_row(row: Any, before: list[dict[str, Any]], where: str) -> None:
    if not isinstance(row, dict) or "prompt" not in row:
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{where}: expected an object with a `prompt`, got {keys}")
    prompt = row["prompt"]
    messages = (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in prompt)
    )
    if not (messages or (isinstance(prompt, str) and prompt)):
        raise DataError(
            f"{where}: `prompt` must be a non-empty text or a list of messages with role and content"
        )
    if before and row.keys() != before[0].keys():
        raise DataError(
            f"{where}: fields {sorted(row)} differ from those of the first line, {sorted(before[0])}"
        )


@dataclass(frozen=True)
class UserConfig:
    """Options of the user's world."""

    data: str = ""
    """JSONL file."""
    held_out: float = 0.1
    """Share of the prompts that is kept for evaluation (at least one)."""
    answer_pattern: str = _ANSWER
    """Regular expression whose first filled group is the answer, for methods that compare answers."""
    size: tuple[int, int] | None = None
    """Pipelines: height and width of images in pixels; None is the pipeline's own."""
    guidance: float | None = None
    """Pipelines: see `DiffusersFlowPolicy.from_pretrained`; None is the pipeline's own."""
    max_sequence_length: int | None = None
    """Pipelines: tokens that T5 reads of a prompt; None is the pipeline's own."""
    recompute: int = 0
    """Pipelines: network evaluations whose activations are kept at a time; 0 keeps all."""

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else ()
        if self.size is not None and (len(sides) != 2 or not all(isinstance(side, int) for side in sides)):
            raise ConfigError(
                f"world.size must be height and width in pixels, e.g. [512, 512], got {self.size!r}"
            )


@dataclass(frozen=True)
class UserWorld:
    """Prompts and rewards of the user. The only metrics it knows are the rewards themselves, on held-out prompts."""

    config: UserConfig
    model: str
    rewards: Mapping[str, Any] = field(default_factory=dict)
    name: str = "user"
    judged_by_rewards: bool = True
    """Whether `evaluate` reads the columns of the rewards, so that they must be scored before."""
    scorers: Mapping[str, Callable[[Table], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            re.compile(self.config.answer_pattern)
        except re.error as error:
            raise ConfigError(f"world.answer_pattern is no regular expression: {error}") from None
        given = [name for name, value in self._of_images().items() if value]
        if given and self.modality == "text":
            raise ConfigError(
                f"world.{given[0]} is for pipelines of images; {self.model!r} is no folder with a model_index.json"
            )

    @property
    def modality(self) -> Literal["text", "image"]:
        """What the model makes: images if it is a folder with a pipeline of diffusers, else text."""
        from concordant.policies.flow.pipelines import is_pipeline

        return "image" if is_pipeline(self.model) else "text"

    @property
    def columns(self) -> dict[str, str]:
        """Columns that `annotate` adds."""
        return {"answer_id": "b"} if self.modality == "text" else {}

    def _of_images(self) -> dict[str, Any]:
        names = ("size", "guidance", "max_sequence_length", "recompute")
        return {name: getattr(self.config, name) for name in names}

    def _rows(self, split: str) -> list[tuple[int, dict[str, Any]]]:
        rows = list(enumerate(_read_once(self.config.data)))
        order = sorted(rows, key=lambda pair: address("held-out", json.dumps(pair[1]["prompt"])))
        cut = max(1, int(len(order) * self.config.held_out))
        held = {json.dumps(row["prompt"]) for _, row in order[:cut]}
        inside = [pair for pair in rows if (json.dumps(pair[1]["prompt"]) in held) == (split == "test")]
        if not inside:
            raise DataError(
                f"{self.config.data}: all prompts are equal, so none can be held out for evaluation"
            )
        return inside

    def tasks(
        self, split: Literal["train", "test"], seed: int = 0, step: int = 0, count: int = 1
    ) -> list[Task]:
        """Train: prompts in a fresh order each pass, by (seed, step). Test: the first `count` held-out ones."""
        rows = self._rows(split)
        if split == "test":
            return [_task(i, row) for i, row in rows[:count]]
        chosen = []
        for place in range(max(step, 0) * count, max(step, 0) * count + count):
            pass_, index = divmod(place, len(rows))
            order = torch.randperm(len(rows), generator=Rng(seed, "user-data", pass_).generator())
            chosen.append(_task(*rows[int(order[index])]))
        return chosen

    def policy(self, **options: Any) -> Any:
        """Load the user's model."""
        if self.modality == "image":
            from concordant.policies.flow.diffusers import DiffusersFlowPolicy

            return DiffusersFlowPolicy.from_pretrained(self.model, **self._of_images(), **options)
        from concordant.policies.lm import LMPolicy

        return LMPolicy.from_pretrained(self.model, **options)

    def annotate(self, table: Table) -> Table:
        """Text: add `answer_id` [b], equal for equal extracted answers, 0 where none was found."""
        if self.modality == "image":
            return table
        ids = []
        for text in table.fields["completion"]:
            match = re.search(self.config.answer_pattern, text, re.DOTALL)
            answer = next((group for group in match.groups() if group is not None), "") if match else None
            ids.append(0 if answer is None else 1 + address(answer.strip()) % _MAX_ID)
        return table.with_columns({"answer_id": ("b", torch.tensor(ids, dtype=torch.int64))})

    def _own(self, table: Table) -> list[str]:
        """Rewards that say something about a rollout by itself; the mean share that a left one wins says nothing."""
        return [name for name in self.rewards if "p" not in table.axes(name)]

    def evaluate(self, table: Table) -> dict[str, list[float]]:
        """The user's rewards, from their columns (missing ones left out); for text the length in tokens, too."""
        values = {}
        for name in self._own(table):
            column = table[name][table["mask"]] if table.axes(name) == ("b", "s") else table[name]
            values[f"reward/{name}"] = [v for v in column.flatten().tolist() if v == v]
        return values if self.modality == "image" else {**values, "length": table["mask"].sum(1).tolist()}

    def meters(self, table: Table) -> dict[str, float]:
        """Share of groups in which all members got the same reward, by reward."""
        from concordant.kernels import tied_groups

        return {
            f"tied/{name}": float(tied_groups(table[name], table["group"]).float().mean())
            for name in self._own(table)
        }

    def validate(self) -> list[str]:
        """Read the data file; any fault is raised with its line."""
        read_jsonl(Path(self.config.data))
        return []


def _task(index: int, row: Mapping[str, Any]) -> Task:
    return Task(index, row["prompt"], {key: value for key, value in row.items() if key != "prompt"})


def data_revision(path: Path) -> str:
    """Content hash of a data file, so that a resumed run notices that it changed."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.is_file() else ""
