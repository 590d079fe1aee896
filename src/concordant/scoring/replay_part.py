"""From outcomes to the columns that are stored and counted."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from concordant.core.errors import DataError, RewardError
from concordant.scoring.agreement import Tally
from concordant.scoring.batches import Batch
from concordant.scoring.outcome import Outcome
from concordant.scoring.parts import Part
from concordant.scoring.replay_job import Job
from concordant.scoring.reward import Reward
from concordant.scoring.rollout_output import scores_of

_SEVERAL = ("segment", "step", "check")


class MissingScore(RewardError):
    """A reward whose policy is `fail` has no value for a row."""


def make_part(job: Job, batch: Batch, outcomes: Mapping[str, Sequence[Outcome]], begin: int) -> Part:
    """Turn outcomes into columns."""
    size = len(batch)
    groups = np.asarray(batch.groups)
    kept = np.ones(size, dtype=bool)
    columns: dict[str, Any] = {}
    for index, each in enumerate(job.rewards):
        said = outcomes[each.name]
        judged = np.array([one.value is not None for one in said], dtype=bool)
        kept &= _kept(each, judged, groups, said, job, batch)
        columns |= _columns(index, each, said, judged)
        if each.name in job.old:
            columns[f"old.{index}"] = pa.array(_numbers(batch.block.columns[job.old[each.name]], job, batch))
    columns = {"group": groups, "kept": kept, **columns}
    if batch.marks:
        columns["mark"] = pa.array(batch.marks, pa.int64())
    info: dict[str, Any] = {"first": batch.first, "step": batch.step}
    if batch.block.lines:
        digest = hashlib.blake2b(b"".join(batch.block.lines), digest_size=16).hexdigest()
        info |= {
            "begin": begin,
            "end": batch.block.ends[-1],
            "line": batch.block.numbers[-1],
            "digest": digest,
        }
    return Part(pa.table(columns), info)


def _columns(index: int, reward: Reward, said: Sequence[Outcome], judged: Any) -> dict[str, Any]:
    kind = pa.list_(pa.float64()) if reward.level in _SEVERAL else pa.float64()
    values: list[Any] = [one.value for one in said]
    if reward.level in _SEVERAL:
        values = [v and [None if math.isnan(x) else x for x in v] for v in values]
    reasons = (
        pa.nulls(len(said), pa.string())
        if judged.all()
        else pa.array([o.reason or None for o in said], pa.string())
    )
    return {
        f"value.{index}": pa.array(values, kind),
        f"missing.{index}": reasons,
        f"seconds.{index}": pa.array([one.seconds for one in said], pa.float64()),
        f"attempts.{index}": pa.array([one.attempts for one in said], pa.int32()),
        f"cached.{index}": pa.array([one.cached for one in said], pa.bool_()),
        f"sandbox.{index}": pa.array([one.sandbox for one in said], pa.string()),
    }


def _kept(reward: Reward, judged: Any, groups: Any, said: Sequence[Outcome], job: Job, batch: Batch) -> Any:
    """Apply the policy for missing values; a row that is dropped is left out of the output."""
    if reward.missing == "exclude" or judged.all():
        return np.ones(len(judged), dtype=bool)
    if reward.missing == "fail":
        row = int(np.argmin(judged))
        raise MissingScore(
            f"reward {reward.name!r} has no value for {job.source.path}, {batch.block.place(row)}: {said[row].reason}"
        )
    if reward.missing == "drop-rollout":
        return judged
    return ~np.isin(groups, groups[~judged])


def _numbers(cells: Sequence[Any], job: Job, batch: Batch) -> Any:
    if set(map(type, cells)) == {float} and np.isfinite(found := np.array(cells)).all():
        return found
    return np.array([_number(cell, job, batch, row) for row, cell in enumerate(cells)])


def _number(cell: Any, job: Job, batch: Batch, row: int) -> float:
    """Read an old score; several values for a rollout count by their mean."""
    if cell is None:
        return math.nan
    if isinstance(cell, list):
        held = [float(each) for each in cell if isinstance(each, int | float) and not math.isnan(each)]
        return math.fsum(held) / len(held) if held else math.nan
    if isinstance(cell, int | float):
        return float(cell) if math.isfinite(cell) else math.nan
    raise DataError(
        f"{job.source.path}, {batch.block.place(row)}: an old score must be a number, got {type(cell).__name__}"
    )


def tell(tally: Tally, part: Part, index: int, groups: Any) -> None:
    """Count the scores of reward number `index` in a part; `groups` are the group numbers of its rows."""
    columns = scores_of(part, index)
    values = columns["value"]
    if pa.types.is_list(values.type):
        cells = ([x for x in cell or () if x is not None] for cell in values.to_pylist())
        numbers = np.array([math.fsum(cell) / len(cell) if cell else math.nan for cell in cells])
    else:
        numbers = values.to_numpy()
    seconds, attempts = columns["seconds"].to_numpy(), columns["attempts"].to_numpy()
    tally.add(numbers, seconds, attempts, columns["cached"].to_numpy(), groups)
    if columns["missing"].null_count < len(numbers):
        tally.reasons += Counter(reason for reason in columns["missing"].to_pylist() if reason is not None)
    if "old" in columns:
        tally.compare(part.first, numbers, columns["old"].to_numpy(), groups)
