"""Score stored rollouts again: stream a file through the engine, write scores, compare them with old ones."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from concordant.core.errors import CheckpointError, DataError, RewardError
from concordant.scoring.batches import Batch, Batches
from concordant.scoring.cache import Cache
from concordant.scoring.known import Known, Made
from concordant.scoring.outcome import Outcome
from concordant.scoring.parts import Part, Parts
from concordant.scoring.replay_job import Job, as_rows, manifest, prepare
from concordant.scoring.replay_part import MissingScore, make_part, tell
from concordant.scoring.reward import Context, Reward, as_reward, load_reward
from concordant.scoring.rollout_files import Start, read_cell
from concordant.scoring.rollout_output import Naming, check_out, write
from concordant.scoring.values import said_nothing

__all__ = ["MissingScore", "NothingJudged", "Rescoring", "rescore"]

_AHEAD = 2  # batches the engine has at a time, so that no worker waits while results are written
_EXCERPT = 160

Watch = Callable[[int, int, Mapping[str, Any]], None]


class NothingJudged(RewardError):
    """A reward failed on every row of the first batch."""


@dataclass(frozen=True)
class Rescoring:
    """What `rescore` found; `rewards[name]` holds what `Tally.as_json` says, and names of columns."""

    path: str
    format: str
    rows: int
    kept: int
    """Rows that are written: all but those that the policies for missing values dropped."""
    resumed: int
    """Rows that an earlier, interrupted call had scored."""
    seconds: float
    rewards: Mapping[str, Mapping[str, Any]]
    out: str | None = None

    @property
    def silent(self) -> list[str]:
        """Rewards that judged nothing."""
        return [name for name, told in self.rewards.items() if not told["scored"]]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "path": self.path, "format": self.format, "out": self.out, "rows": self.rows, "kept": self.kept,
            "resumed": self.resumed, "seconds": self.seconds,
            "rewards": {name: dict(told) for name, told in self.rewards.items()},
        }  # fmt: skip


def rescore(
    path: str | Path,
    rewards: Sequence[Reward | Callable[..., Any] | str],
    out: str | Path | None = None,
    *,
    workers: int = 2,
    cache: str | Path | None = None,
    seed: int = 0,
    group: str | None = None,
    columns: Mapping[str, str] | None = None,
    old: Mapping[str, str] | None = None,
    batch_rows: int = 2048,
    fresh: bool = False,
    watch: Watch | None = None,
) -> Rescoring:
    """Score the rollouts of a file, in memory that does not grow with it.

    With `out`, a call that was killed goes on where it stopped when it is repeated, and leaves the file that one call
    would have left (durations, and what came from the cache, aside).

    Args:
        path: Parquet, or JSONL with one object a line; a file of a run, of TRL or of verl is recognised.
        rewards: what to score with: rewards, functions, or `"file.py:name"`; names must differ.
        out: Parquet or JSONL with the input's columns and the scores; None only reports.
        workers: processes that call rewards.
        cache: SQLite file with earlier results; made if there is none.
        seed: of the rewards that ask for `context`.
        group: column whose neighbouring equal values make a group; None: what the format says.
        columns: column of a field, where it has another name: `{"completion": "response"}`.
        old: column of the scores to compare with, by reward; else the column of the reward's name.
        batch_rows: rows scored, and stored, at a time; groups are kept whole.
        fresh: forget what an interrupted call left.
        watch: called with rows done, rows in all (an estimate for JSONL), and the mean of each reward so far.

    Returns:
        What there is to tell about each reward.

    Raises:
        DataError: if the file cannot be used; it names the line. What was scored before that line is kept.
        RewardError: if a reward asks for a field that is not there.
        MissingScore: if a reward whose policy is `fail` has no value for a row.
        NothingJudged: if a reward failed on every row of the first batch and there are more.
        CheckpointError: if the parts of an interrupted call are of something else.
    """
    began = time.monotonic()
    asked = [load_reward(each) if isinstance(each, str) else as_reward(each) for each in rewards]
    job = prepare(Path(path), asked, group, columns or {}, old or {}, batch_rows, seed)
    target = Path(out) if out is not None else None
    if target is not None:
        check_out(target, job.source.path, [each.name for each in job.rewards])
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Cache(cache)) if cache is not None else None
        parts = None
        if target is not None:
            parts = Parts(target, manifest(job), fresh)
            stack.callback(parts.close)
        progress = _Progress(job, watch)
        resumed = _run(job, parts, progress, workers, store)
        if parts is not None and target is not None:
            _finish(job, parts, target)
    told = {name: tally.as_json() for name, tally in job.tallies.items()}
    _add_excerpts(job, told)
    for each in job.rewards:
        told[each.name]["old"] = job.old.get(each.name)
    return Rescoring(
        str(path), job.layout.format, progress.rows, progress.kept, resumed, time.monotonic() - began, told,
        str(target) if target is not None else None,
    )  # fmt: skip


def _run(job: Job, parts: Parts | None, progress: "_Progress", workers: int, cache: Cache | None) -> int:
    """Score all batches; return how many rows were done before."""
    from concordant.scoring.engine import Engine

    start, seen = Start(), set[int]()
    if parts is not None:
        for part in parts.finished(job.source):
            start = part.next
            if "mark" in part.table.column_names:
                seen.update(part.table.column("mark").unique().to_pylist())
            progress.add(part)
    batches = Batches(
        job.source, job.layout, job.columns, job.size,
        by_step=job.by_step, whole=job.whole_steps, apart=job.whole_groups, seen=seen, start=start,
    )  # fmt: skip
    begin = start.byte
    known = Known(
        job.rewards, cache, lambda: Engine(list(job.rewards), workers=workers, cache=cache, strict=False)
    )
    with contextlib.closing(known):
        for batch, outcomes in _scored(job, known, iter(batches)):
            _refuse_failing(job)
            part = make_part(job, batch, outcomes, begin)
            begin = part.next.byte
            if parts is not None:
                parts.add(part)
            progress.add(part)
    return start.row


def _finish(job: Job, parts: Parts, target: Path) -> None:
    naming = Naming(tuple(each.name for each in job.rewards))
    try:
        write(job.source, parts, naming, parts.temporary, target.suffix)
        parts.publish()
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target}: {error.strerror or error}; once that is mended, the same command goes on"
        ) from None


def _refuse_failing(job: Job) -> None:
    """Stop before the second batch if a reward failed on all rows of the first: there may be a million more."""
    for name, tally in job.tallies.items():
        failed = sum(count for reason, count in tally.reasons.items() if not said_nothing(reason))
        if tally.rows and failed == tally.rows:
            first = max(tally.reasons, key=lambda reason: tally.reasons[reason])
            raise NothingJudged(
                f"reward {name!r} failed on all of the first {failed} rollouts; most often: {first}"
            )


def _scored(
    job: Job, known: Known, batches: Iterator[Batch]
) -> Iterator[tuple[Batch, Mapping[str, Sequence[Outcome]]]]:
    """Keep the engine busy; a fault in the input ends the stream after what stands before it."""
    waiting: deque[tuple[Batch, Callable[[], Made]]] = deque()
    fault: DataError | None = None
    while True:
        try:
            batch = next(batches, None) if fault is None else None
        except DataError as error:
            batch, fault = None, error
        if batch is not None:
            waiting.append(
                (
                    batch,
                    known.submit(as_rows(job, batch), Context(batch.step, job.total or batch.step, job.seed)),
                )
            )
        if waiting and (batch is None or len(waiting) >= _AHEAD):
            first, result = waiting.popleft()
            yield first, result()
        elif batch is None:
            break
    if fault is not None:
        raise fault


class _Progress:
    """Counts what is done, for the report and for whoever watches."""

    def __init__(self, job: Job, watch: Watch | None) -> None:
        self.job, self.watch = job, watch
        self.rows, self.kept = 0, 0
        self.total = job.source.count() if watch is not None else 0

    def add(self, part: Part) -> None:
        """Take the next rows."""
        self.rows += part.table.num_rows
        self.kept += int(np.count_nonzero(part.table.column("kept")))
        groups = part.table.column("group").to_numpy()
        for index, each in enumerate(self.job.rewards):
            tell(self.job.tallies[each.name], part, index, groups)
        if self.watch is not None:
            means = {
                name: tally.values.mean for name, tally in self.job.tallies.items() if tally.values.count
            }
            self.watch(self.rows, max(self.total, self.rows), means)


def _add_excerpts(job: Job, told: Mapping[str, dict[str, Any]]) -> None:
    """Add the beginning of the completion to the rows that differ most."""
    worst = [each for t in told.values() if t["agreement"] for each in t["agreement"]["differ_most"]]
    if not worst or "completion" not in job.layout.names:
        return
    column = job.layout.column("completion")
    cells = job.source.cells(column, {each["row"] for each in worst})
    for each in worst:
        place, cell = cells[each["row"]]
        text = read_cell(cell) if column in job.layout.encoded else cell
        each["place"], each["completion"] = place, (text if isinstance(text, str) else str(text))[:_EXCERPT]
