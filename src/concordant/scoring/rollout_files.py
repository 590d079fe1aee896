"""Files of rollouts, read as a stream: Parquet by batches, JSONL by lines; a fault is told with its place."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from concordant.core.errors import DataError, nearest

_READ = 1 << 20
_BLOCK = 1024  # rows read at a time


@dataclass
class Block:
    """Consecutive rows: `columns[name][row]`."""

    first: int
    """Number of its first row in the file, from 0."""
    columns: dict[str, list[Any]]
    size: int
    ends: list[int] = field(default_factory=list)
    """JSONL: the byte after each row's line."""
    lines: list[bytes] = field(default_factory=list)
    """JSONL: the lines."""
    numbers: list[int] = field(default_factory=list)
    """JSONL: the number of each row's line, from 1."""

    def extend(self, other: "Block") -> None:
        """Append the rows that follow."""
        for name, values in self.columns.items():
            values += other.columns[name]
        self.size += other.size
        self.ends += other.ends
        self.lines += other.lines
        self.numbers += other.numbers

    def split(self, at: int) -> "tuple[Block, Block]":
        """Return the first `at` rows and the others."""
        parts = []
        for span in (slice(0, at), slice(at, self.size)):
            columns = {name: values[span] for name, values in self.columns.items()}
            size = len(range(*span.indices(self.size)))
            part = Block(self.first + (span.start or 0), columns, size)
            part.ends, part.lines, part.numbers = self.ends[span], self.lines[span], self.numbers[span]
            parts.append(part)
        return parts[0], parts[1]

    def place(self, row: int) -> str:
        """Say where a row of this block stands in the file."""
        return f"line {self.numbers[row]}" if self.numbers else f"row {self.first + row}"


@dataclass(frozen=True)
class Start:
    """Where to go on reading."""

    row: int = 0
    byte: int = 0
    line: int = 0
    """Lines before it (JSONL; blank lines are no rows)."""
    step: int | None = None
    """Step of the row before it, where it is known."""


class Rollouts(Protocol):
    """A file of rollouts."""

    path: Path
    columns: list[str]

    def blocks(self, columns: Sequence[str], start: Start = Start()) -> Iterator[Block]:
        """Read some columns, a limited number of rows at a time."""
        ...

    def count(self) -> int:
        """Return the number of rows (JSONL: of lines)."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what tells this file from another, as far as it is known without reading rows."""
        ...

    def cells(self, column: str, rows: Collection[int]) -> dict[int, tuple[str, Any]]:
        """Return place and content of the cells of a few rows."""
        ...


def open_rollouts(path: str | Path) -> "ParquetRollouts | JsonlRollouts":
    """Open `.parquet`, or `.jsonl`, `.ndjson`, `.json` with one object a line.

    Raises:
        DataError: if there is no such file, it is empty, or it is something else.
    """
    file = Path(path)
    kinds: dict[str, Any] = {
        ".parquet": ParquetRollouts,
        ".jsonl": JsonlRollouts,
        ".ndjson": JsonlRollouts,
        ".json": JsonlRollouts,
    }
    if not file.exists():
        near = (
            [each.name for each in file.parent.glob("*") if each.suffix in kinds]
            if file.parent.is_dir()
            else []
        )
        raise DataError(f"there is no file {file}; {nearest(file.name, near)}")
    if file.is_dir():
        raise DataError(f"{file} is a folder; give one file, for a run {file / 'rollouts.parquet'}")
    if file.suffix not in kinds:
        raise DataError(
            f"{file}: rollouts are read from .parquet or .jsonl, not {file.suffix or 'files without ending'}"
        )
    if not file.stat().st_size:
        raise DataError(f"{file} is empty")
    opened: ParquetRollouts | JsonlRollouts = kinds[file.suffix](file)
    return opened


class ParquetRollouts:
    """A Parquet file; memory is that of a few thousand rows, however large its row groups are."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            self.file = pq.ParquetFile(path, buffer_size=_READ)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from None
        self.columns = list(self.file.schema_arrow.names)
        if not self.count():
            raise DataError(f"{path} has no rows")

    def count(self) -> int:
        """Return the number of rows."""
        return int(self.file.metadata.num_rows)

    def identity(self) -> dict[str, Any]:
        """Return size and digest of the file."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return {"bytes": self.path.stat().st_size, "digest": digest.hexdigest()}

    def batches(self, columns: Sequence[str] | None, first: int = 0) -> Iterator[Any]:
        """Read record batches from row `first` on."""
        import pyarrow as pa

        groups, skip = self._from(first)
        try:
            for batch in self.file.iter_batches(
                _BLOCK, row_groups=groups, columns=columns, use_threads=False
            ):
                if skip < batch.num_rows:
                    yield batch.slice(skip)
                skip = max(0, skip - batch.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read to its end: {error}") from None

    def _from(self, first: int) -> tuple[list[int], int]:
        """Return the row groups that hold row `first` and what follows, and the rows to skip in them."""
        skip = first
        for index in range(self.file.num_row_groups):
            rows = self.file.metadata.row_group(index).num_rows
            if skip < rows:
                return list(range(index, self.file.num_row_groups)), skip
            skip -= rows
        return [], 0

    def blocks(self, columns: Sequence[str], start: Start = Start()) -> Iterator[Block]:
        """Read some columns as Python values."""
        row = start.row
        for batch in self.batches(list(columns), row):
            values = {name: batch.column(name).to_pylist() for name in columns}
            yield Block(row, values, batch.num_rows)
            row += batch.num_rows

    def cells(self, column: str, rows: Collection[int]) -> dict[int, tuple[str, Any]]:
        """Return place and content of the cells of a few rows."""
        found = {}
        for row in rows:
            batch = next(self.batches([column], row))
            found[row] = f"row {row}", batch.column(0)[0].as_py()
        return found


class JsonlRollouts:
    """Lines of JSON objects; a column is a key of the first one. Blank lines are skipped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        for _, _, _, line in self._lines(Start()):
            self.columns = list(self._parse(line, 1))
            break
        else:
            raise DataError(f"{path} has no rows, only blank lines")

    def count(self) -> int:
        """Return the number of lines."""
        lines, last = 0, b"\n"
        with self.path.open("rb") as file:
            while data := file.read(_READ):
                lines += data.count(b"\n")
                last = data[-1:]
        return lines + (last != b"\n")

    def identity(self) -> dict[str, Any]:
        """Nothing yet: every part remembers the digest of its own lines, so that a later line may be mended."""
        return {}

    def _lines(self, start: Start) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield row, line number, end and content of every line that is not blank (with the blank ones before it)."""
        row, number, end, blank = start.row, start.line, start.byte, b""
        with self.path.open("rb") as file:
            file.seek(start.byte)
            for line in file:
                number += 1
                end += len(line)
                if line.isspace():
                    blank += line
                else:
                    yield row, number, end, blank + line
                    row, blank = row + 1, b""

    def raw(self) -> Iterator[bytes]:
        """Yield the lines that are not blank."""
        for _, _, _, line in self._lines(Start()):
            yield line

    def blocks(self, columns: Sequence[str], start: Start = Start()) -> Iterator[Block]:
        """Read some keys of every line, and the lines themselves; what stands before a bad line comes first."""
        block = Block(start.row, {name: [] for name in columns}, 0)
        for row, number, end, line in self._lines(start):
            try:
                record = self._parse(line, number)
                cells = [record[name] for name in columns]
            except (DataError, KeyError) as error:
                if block.size:
                    yield block
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"{self.path}, line {number}: no {error.args[0]!r}, which line 1 has"
                ) from None
            for values, cell in zip(block.columns.values(), cells, strict=True):
                values.append(cell)
            block.size += 1
            block.ends.append(end)
            block.lines.append(line)
            block.numbers.append(number)
            if block.size == _BLOCK:
                yield block
                block = Block(row + 1, {name: [] for name in columns}, 0)
        if block.size:
            yield block

    def cells(self, column: str, rows: Collection[int]) -> dict[int, tuple[str, Any]]:
        """Return place and content of the cells of a few rows."""
        found = {}
        for row, number, _, line in self._lines(Start()):
            if row in rows:
                found[row] = f"line {number}", self._parse(line, number).get(column)
                if len(found) == len(rows):
                    break
        return found

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise DataError(f"{self.path}, line {number}: not JSON ({what})") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{self.path}, line {number}: expected an object such as "
                f'{{"prompt": ..., "completion": ...}}, got {type(record).__name__}'
            )
        return record

    def matches(self, begin: int, end: int, digest: str) -> bool:
        """Return whether the bytes from `begin` to `end` are those that a digest was made of."""
        with self.path.open("rb") as file:
            file.seek(begin)
            made = hashlib.blake2b(digest_size=16)
            left = end - begin
            while left and (data := file.read(min(left, _READ))):
                made.update(data)
                left -= len(data)
        return not left and made.hexdigest() == digest


def read_cell(cell: str | None) -> Any:
    """What a JSON cell says; a text without escapes, which most are, by the short way."""
    if not cell:
        return None if cell is None else json.loads(cell)
    if cell[0] == '"' and len(cell) > 1 and "\\" not in cell and cell.find('"', 1) == len(cell) - 1:
        return cell[1:-1]
    return json.loads(cell)


def decode(columns: Mapping[str, list[Any]], encoded: frozenset[str], block: Block, path: Path) -> None:
    """Replace the cells of columns that hold JSON by what they say, in place."""
    for name in encoded & columns.keys():
        cells = columns[name]
        for row, cell in enumerate(cells):
            try:
                cells[row] = read_cell(cell)
            except ValueError:
                raise DataError(f"{path}, {block.place(row)}: column {name!r} is not JSON") from None
