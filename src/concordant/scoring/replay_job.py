"""What a re-scoring was asked to do, checked against the file before anything is scored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from concordant.core.errors import DataError, RewardError, nearest
from concordant.scoring.agreement import Tally
from concordant.scoring.arrays import restore
from concordant.scoring.batches import Batch
from concordant.scoring.call import arguments, takes_context
from concordant.scoring.keys import fingerprint
from concordant.scoring.layout import Layout, arrange, recognise
from concordant.scoring.outcome import Rows
from concordant.scoring.reward import Reward, check_fields
from concordant.scoring.rollout_files import JsonlRollouts, ParquetRollouts, open_rollouts


@dataclass(frozen=True)
class Job:
    """Everything that was asked for, checked."""

    source: ParquetRollouts | JsonlRollouts
    layout: Layout
    rewards: tuple[Reward, ...]
    old: Mapping[str, str]
    """Column of old scores, by reward."""
    size: int
    seed: int
    fields: tuple[str, ...] = ()
    """What the rewards read."""
    total: int = 0
    """Steps of the run; 0 where they are not known, and each step is taken for the last."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)

    @property
    def whole_groups(self) -> bool:
        """Whether a reward must see all members of a group."""
        return any(each.level == "group" for each in self.rewards)

    @property
    def whole_steps(self) -> bool:
        """Whether a reward must see all rollouts of a step."""
        return any(each.level == "batch" for each in self.rewards)

    @property
    def by_step(self) -> bool:
        """Whether rows of different steps must not be scored together."""
        return self.whole_steps or any(map(takes_context, self.rewards))

    @property
    def columns(self) -> list[str]:
        """Columns to be read."""
        lengths = [self.layout.lengths[r.level] for r in self.rewards if r.level in self.layout.lengths]
        return list(dict.fromkeys((*map(self.layout.column, self.fields), *self.old.values(), *lengths)))


def prepare(
    path: Path,
    rewards: Sequence[Reward],
    group: str | None,
    renamed: Mapping[str, str],
    old: Mapping[str, str],
    size: int,
    seed: int,
) -> Job:
    """Open the file, recognise it, and check that the rewards find what they ask for; see `rescore`."""
    names = [each.name for each in rewards]
    if not names:
        raise RewardError("give at least one reward")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RewardError(
            f"two rewards are called {twice!r}; columns need names that differ, as in --reward OTHER=FILE.py:NAME"
        )
    if size < 1:
        raise DataError(f"a batch needs at least one row, got {size}")
    for name in old:
        if name not in names:
            raise RewardError(f"old scores for {name!r}, which is not scored; {nearest(name, names)}")
    source = open_rollouts(path)
    layout = recognise(source.columns)
    before = _old_columns(source.columns, layout, names, old, path)
    layout = arrange(layout, source.columns, str(path), renamed, group, (*names, *before.values()))
    for each in rewards:
        _check(each, layout, path)
    fields = tuple(dict.fromkeys(name for r in rewards for name in _reads(r, layout)))
    tallies = {name: Tally() for name in names}
    total = _total(path) if layout.format == "concordant" else 0
    return Job(source, layout, tuple(rewards), before, size, seed, fields, total, tallies)


def _total(path: Path) -> int:
    """Steps of the run that a file lies in."""
    try:
        return int(json.loads((path.parent / "config.json").read_text(encoding="utf-8"))["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _old_columns(
    columns: Sequence[str], layout: Layout, names: Sequence[str], asked: Mapping[str, str], path: Path
) -> dict[str, str]:
    found = {name: name for name in names if name in columns}
    if layout.format == "verl" and len(names) == 1 and not found:
        found = {names[0]: "score"}
    for column in asked.values():
        if column not in columns:
            raise DataError(f"{path} has no column {column!r}; {nearest(column, columns)}")
    return {**found, **asked}


def _reads(reward: Reward, layout: Layout) -> list[str]:
    """Fields a reward is given: all data for one with `**kwargs`, and whatever it asks for by name."""
    asked = [name for name in layout.others if name in reward.parameters]
    return [*arguments(reward, list(layout.fields)).values(), *asked]


def _check(reward: Reward, layout: Layout, path: Path) -> None:
    if reward.level == "pair":
        raise RewardError(
            f"reward {reward.name!r} compares two rollouts, and `score` writes a number for each one; run it in "
            "training, or over rows in Python with concordant.scoring.Engine"
        )
    try:
        check_fields(reward, layout.names)
    except RewardError as error:
        raise RewardError(f"{error} (fields of {path}; --map FIELD=COLUMN says where a field is)") from None
    if reward.style == "batch" and "completion" not in layout.names:
        raise DataError(
            f"{path} has no column for completions; say which it is with --map completion=COLUMN; "
            f"{nearest('completion', layout.names)}"
        )
    if reward.level == "batch" and not layout.step:
        raise DataError(
            f"reward {reward.name!r} judges all rollouts of a step, and {path} has no column 'step'"
        )
    if reward.level in ("segment", "step") and reward.level not in layout.lengths:
        raise DataError(
            f"reward {reward.name!r} judges each {reward.level}, and {path} does not say how many a rollout has; "
            "that is known for the rollouts.parquet of a run"
        )


def manifest(job: Job) -> dict[str, Any]:
    """What makes two calls the same work."""
    return {
        "input": {"kind": job.source.path.suffix, **job.source.identity()},
        "rewards": [
            {"name": r.name, "fingerprint": fingerprint(r).hex(), "missing": r.missing, "timeout": r.timeout}
            for r in job.rewards
        ],
        "layout": {
            "fields": {name: job.layout.column(name) for name in job.fields},
            "group": job.layout.group,
        },
        "old": dict(job.old),
        "batch rows": job.size,
        "seed": job.seed,
        "steps": job.total,
    }


def _restored(job: Job, batch: Batch, name: str) -> list[Any]:
    """A field of a batch with its arrays."""
    cells = batch.block.columns[job.layout.column(name)]
    if not any(type(cell) is dict or type(cell) is list for cell in cells):
        return cells
    found = []
    for row, cell in enumerate(cells):
        try:
            found.append(restore(cell))
        except ValueError as error:
            raise DataError(f"{job.source.path}, {batch.block.place(row)}: field {name!r}: {error}") from None
    return found


def as_rows(job: Job, batch: Batch) -> Rows:
    """Return what the engine is given of a batch."""
    columns = batch.block.columns
    ids = range(batch.first, batch.first + len(batch))
    lengths = {
        level: [sum(map(bool, cell)) for cell in columns[name]]
        for level, name in job.layout.lengths.items()
        if name in columns
    }
    fields = {name: _restored(job, batch, name) for name in job.fields}
    return Rows(fields, batch.groups, ids, lengths)
