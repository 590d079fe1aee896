"""Work in progress of a scoring of a file: one small Parquet file for each batch, and what they are parts of.

A part holds scores only; the output is put together from input and parts at the end. A part is there whole or not at
all, so that a killed process loses the batches it was working on and nothing else.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from concordant.core.errors import CheckpointError
from concordant.scoring.rollout_files import JsonlRollouts, Rollouts, Start

FORMAT = 1
_INFO = b"concordant.part"


@dataclass(frozen=True)
class Part:
    """Scores of consecutive rows.

    Columns: `group` (number of the first row of the group), `kept`, `mark` (identity of the group; where rewards need
    groups), and for reward `i`: `value.i`, `missing.i`, `seconds.i`, `attempts.i`, `cached.i`, `sandbox.i`, `old.i`.
    """

    table: pa.Table
    info: Mapping[str, Any]
    """`first` row, `step`; for JSONL also the bytes from `begin` to `end`, the last `line` number, `digest` of all."""

    @property
    def first(self) -> int:
        """Number of the first row."""
        return int(self.info["first"])

    @property
    def next(self) -> Start:
        """Where the rows after it begin."""
        row = self.first + self.table.num_rows
        return Start(row, self.info.get("end", 0), self.info.get("line", 0), self.info.get("step"))


class Parts:
    """The folder of parts beside an output file, held by one process at a time.

    Args:
        out: the output file; the folder is `OUT.parts`.
        manifest: what is being done, as plain data. Parts of something else are refused.
        fresh: remove what is there.

    Raises:
        CheckpointError: if the folder holds parts of something else, or another process works on it.
    """

    def __init__(self, out: Path, manifest: Mapping[str, Any], fresh: bool = False) -> None:
        self.out, self.folder = out, out.with_name(out.name + ".parts")
        self.manifest = {"format": FORMAT, **json.loads(json.dumps(manifest))}
        self._refuse_strangers()
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise CheckpointError(f"cannot write {out}: {error.strerror}; choose another --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise CheckpointError(f"another process is writing {out}") from None
        try:
            self._begin(fresh)
        except BaseException:
            self._lock.close()
            raise

    @property
    def _gone(self) -> Path:
        return self.folder.with_name(self.folder.name + ".done")

    def _refuse_strangers(self) -> None:
        """Never write into, or remove, a folder that is not ours."""
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "lock").exists():
            raise CheckpointError(
                f"{self.folder} is in the way and is no work of concordant; choose another --out"
            )

    def _begin(self, fresh: bool) -> None:
        path = self.folder / "manifest.json"
        if (self._gone / "lock").exists():  # a process was killed while it tidied up
            shutil.rmtree(self._gone, ignore_errors=True)
        if fresh:
            for part in [*self._files(), path]:
                part.unlink(missing_ok=True)
        known = _read_json(path)
        if not self._files():
            _replace(path, json.dumps(self.manifest, indent=1).encode())
        elif known != self.manifest:
            raise self._refused(_difference(known, self.manifest))

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder} holds part of another scoring: {why}; --fresh starts anew, another --out keeps it"
        )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def finished(self, source: Rollouts) -> Iterator[Part]:
        """Yield the parts that still hold, from the first row on, and remove the others.

        A part holds if it can be read, follows the one before it, and (JSONL) its lines are as they were.
        Where lines have changed, the part before them goes too: its last group may go on in a changed line.
        """
        usable, row = 0, 0
        files = self._files()
        for file in files:
            part = _read(file)
            if part is None or part.first != row:
                break
            if isinstance(source, JsonlRollouts) and not source.matches(
                part.info["begin"], part.info["end"], part.info["digest"]
            ):
                if not row:
                    raise self._refused("the input file has changed from its beginning")
                usable -= 1
                break
            usable, row = usable + 1, part.next.row
        for file in files[usable:]:
            file.unlink()
        for file in files[:usable]:
            part = _read(file)
            assert part is not None
            yield part

    def add(self, part: Part) -> None:
        """Store a part."""
        table = part.table.replace_schema_metadata({_INFO: json.dumps(dict(part.info))})
        path = self.folder / f"{part.first:012d}.parquet"
        temporary = path.with_suffix(".tmp")
        try:
            pq.write_table(table, temporary, compression="zstd", write_statistics=False)
            temporary.replace(path)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path}: {error.strerror}; the same command goes on"
            ) from None

    def __iter__(self) -> Iterator[Part]:
        for file in self._files():
            part = _read(file)
            if part is None:
                raise CheckpointError(f"{file} cannot be read any more; run the same command again")
            yield part

    @property
    def temporary(self) -> Path:
        """Where the output is put together, on the file system it will be on."""
        return self.folder / "output.tmp"

    def publish(self) -> None:
        """Make the finished output visible, then remove the parts."""
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.out)
        self.folder.rename(self._gone)  # at once: half a folder would look like half the work
        shutil.rmtree(self._gone, ignore_errors=True)

    def close(self) -> None:
        """Let go of the folder; one without parts is removed."""
        if self.folder.is_dir() and not self._files():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _read(file: Path) -> Part | None:
    try:
        with pq.ParquetFile(file) as opened:
            table = opened.read(use_threads=False)  # so small that threads cost more than they bring
        return Part(table, json.loads(table.schema.metadata[_INFO]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _difference(known: Any, wanted: Mapping[str, Any]) -> str:
    """Say what differs, the most telling thing first."""
    if not isinstance(known, Mapping) or known.get("format") != FORMAT:
        return "it was begun by another version of concordant"
    if known.get("input") != wanted["input"]:
        return "the input file has changed"
    if known.get("layout") != wanted["layout"]:
        return "other columns were read"
    before, now = known.get("rewards", []), wanted["rewards"]
    if [each["name"] for each in before] != [each["name"] for each in now]:
        return f"its rewards are {_names(before)}, not {_names(now)}"
    for old, new in zip(before, now, strict=True):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"reward {new['name']!r} {_PARTS.get(key, f'had {key} {old.get(key)}')}"
    changed = sorted(k for k in {*known, *wanted} if known.get(k) != wanted.get(k))
    return ", ".join(f"{key} was {known.get(key)!r}" for key in changed)


_PARTS = {"fingerprint": "had other code, parameters or version"}


def _names(rewards: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(each["name"] for each in rewards)
