"""Cut a file of rollouts into batches that keep groups whole and do not depend on where reading started."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from concordant.core.errors import DataError
from concordant.scoring.layout import Layout
from concordant.scoring.rollout_files import Block, Rollouts, Start, decode


@dataclass(frozen=True)
class Batch:
    """Rows to be scored together."""

    block: Block
    groups: list[int]
    """For each row the number of the first row of its group."""
    marks: list[int]
    """For each row the identity of its group; empty where no reward needs groups."""
    step: int
    """Training step; 0 where the file has none."""

    @property
    def first(self) -> int:
        """Number of its first row."""
        return self.block.first

    def __len__(self) -> int:
        return self.block.size


class Batches:
    """Iterate over the batches of a file.

    A batch that begins at row `i` ends at the first boundary of a group that is at least `size` rows later, or before
    that where the step changes, if `by_step`. Thus the batches after a restart are those of a run without one.

    Args:
        source: the file.
        layout: its layout.
        columns: what to read.
        size: least number of rows of a batch (the last one of the file, or of a step, may have fewer).
        by_step: end a batch where the step changes.
        whole: end it nowhere else; steps must then be in order.
        apart: refuse a group that goes on later in the file; for rewards that judge whole groups.
        seen: marks of the groups before `start`; new ones are added.
        start: where to begin.
    """

    def __init__(
        self,
        source: Rollouts,
        layout: Layout,
        columns: Sequence[str],
        size: int,
        *,
        by_step: bool = False,
        whole: bool = False,
        apart: bool = False,
        seen: set[int] | None = None,
        start: Start = Start(),
    ) -> None:
        self.source, self.layout, self.size = source, layout, size
        self.columns = list(
            dict.fromkeys((*columns, *layout.group, *([layout.step] if by_step or whole else [])))
        )
        self.by_step, self.whole, self.apart, self.start = by_step or whole, whole, apart, start
        self.seen = set() if seen is None else seen

    def __iter__(self) -> Iterator[Batch]:
        held: Block | None = None
        self._step = self.start.step
        done = 0  # rows of `held` that were found to hold no end
        for block in self.source.blocks(self.columns, self.start):
            decode(block.columns, self.layout.encoded, block, self.source.path)
            if held is None:
                held = block
            else:
                held.extend(block)
            while end := self._end(held, done):
                ready, held = held.split(end)
                yield self._batch(ready)
                done = 0
            done = held.size
        if held is not None and held.size:
            yield self._batch(held)

    def _end(self, held: Block, done: int) -> int:
        """Return where the first batch ends; 0 if that cannot be told before more is read."""
        steps = held.columns[self.layout.step] if self.by_step and self.layout.step else None
        keys = [held.columns[name] for name in self.layout.group]
        least = done if steps is not None else max(done, self.size)
        for row in range(max(1, least), held.size):
            if steps is not None and steps[row] != steps[row - 1]:
                return row
            if (
                row >= self.size
                and not self.whole
                and (not keys or any(column[row] != column[row - 1] for column in keys))
            ):
                return row
        return 0

    def _batch(self, block: Block) -> Batch:
        keys = [block.columns[name] for name in self.layout.group]
        if keys:
            together = list(zip(*keys, strict=True))
            starts = [not row or together[row] != together[row - 1] for row in range(block.size)]
        else:
            together, starts = [], [True] * block.size
        groups, number = [], block.first
        for row, begins in enumerate(starts):
            number = block.first + row if begins else number
            groups.append(number)
        marks = self._marks(block, together, starts) if self.apart and keys else []
        step = block.columns[self.layout.step][0] if self.by_step and self.layout.step else 0
        if not isinstance(step, int):
            raise DataError(
                f"{self.source.path}, {block.place(0)}: the step must be a whole number, got {step!r}"
            )
        if self.whole and self._step is not None and step <= self._step:
            raise DataError(
                f"{self.source.path}, {block.place(0)}: step {step} comes after step {self._step}; a reward that "
                f"judges whole steps needs them in order: sort the file by {self.layout.step!r}"
            )
        self._step = step
        return Batch(block, groups, marks, step)

    def _marks(self, block: Block, together: list[tuple[Any, ...]], starts: list[bool]) -> list[int]:
        marks: list[int] = []
        for row, begins in enumerate(starts):
            if not begins:
                marks.append(marks[-1])
                continue
            mark = _mark(together[row])
            if mark in self.seen:
                by = " and ".join(repr(name) for name in self.layout.group)
                raise DataError(
                    f"{self.source.path}, {block.place(row)}: a group goes on after rows of other groups; a reward "
                    f"that judges whole groups needs them together: sort the file by {by}, or name another "
                    "column with --group"
                )
            self.seen.add(mark)
            marks.append(mark)
        return marks


def _mark(key: tuple[Any, ...]) -> int:
    text = json.dumps(key, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
