"""Put the output together: the columns of the input, and the scores beside them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from concordant.core.errors import DataError
from concordant.scoring.layout import SUFFIXES
from concordant.scoring.parts import Part
from concordant.scoring.rollout_files import JsonlRollouts, ParquetRollouts

_ROWS = 1 << 15  # of a row group of the output
_FIELDS = ("value", *SUFFIXES)


@dataclass(frozen=True)
class Naming:
    """What the columns of the output are called.

    The score of a reward is the column of its name. If the input has a column of that name, it stays as `name_old`;
    what an earlier scoring wrote beside it (`name_missing`, ...) is left out.
    """

    rewards: tuple[str, ...]

    def of_input(self, column: str) -> str | None:
        """Return the name of an input column in the output; None if it is left out."""
        if column in self.rewards:
            return f"{column}_old"
        return None if column in self._replaced else column

    @property
    def _replaced(self) -> set[str]:
        return {f"{name}_{suffix}" for name in self.rewards for suffix in SUFFIXES}

    def scores(self) -> dict[str, str]:
        """Return the column of a part for each column of the output."""
        named = {}
        for index, name in enumerate(self.rewards):
            for field in _FIELDS:
                named[name if field == "value" else f"{name}_{field}"] = f"{field}.{index}"
        return named

    def inputs(self, columns: Iterable[str]) -> dict[str, str]:
        """Return the input's column for each of its columns in the output."""
        held = list(columns)
        named = {new: old for old in held if (new := self.of_input(old)) is not None}
        for name in self.rewards:
            if name in held:
                named[f"{name}_old"] = name  # an older `name_old` gives way
        return named

    def touches(self, columns: Iterable[str]) -> bool:
        """Whether any input column is renamed or left out."""
        return any(self.of_input(column) != column for column in columns)


def is_output(path: Path, names: Sequence[str]) -> bool:
    """Return whether a file looks like something that was written here with these rewards."""
    try:
        if path.suffix == ".parquet":
            columns = set(pq.read_schema(path).names)
        else:
            with path.open("rb") as file:
                columns = set(json.loads(file.readline()))
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return False
    return any({f"{name}_missing", f"{name}_attempts"} <= columns for name in names)


def write(
    source: ParquetRollouts | JsonlRollouts, parts: Iterable[Part], naming: Naming, out: Path, kind: str
) -> None:
    """Write all rows that are kept.

    Args:
        source: the input.
        parts: scores of all its rows, in order.
        naming: names of the columns.
        out: where to.
        kind: `.parquet` or `.jsonl`.
    """
    scores = _Scores(parts, naming)
    if kind == ".parquet":
        _write_parquet(_tables(source, naming, scores), out)
        return
    if isinstance(source, JsonlRollouts):
        lines = _spliced(source, naming, scores)
    else:
        lines = _lines_of_tables(_tables(source, naming, scores))
    with out.open("wb") as file:
        for text in lines:
            file.write(text)


def _tables(source: ParquetRollouts | JsonlRollouts, naming: Naming, scores: "_Scores") -> Iterator[pa.Table]:
    read = _from_jsonl if isinstance(source, JsonlRollouts) else _from_parquet
    return read(source, naming, scores)  # type: ignore[arg-type]


class _Scores:
    """Score columns of all rows, taken from the parts piece by piece; `take(n)` gives those of the next n rows."""

    def __init__(self, parts: Iterable[Part], naming: Naming) -> None:
        self.columns = naming.scores()
        self.tables = iter(parts)
        self.held: pa.Table | None = None

    def take(self, rows: int) -> tuple[pa.Table, pa.ChunkedArray]:
        """Return the score columns, named as in the output, and which rows are kept."""
        taken = []
        while rows:
            if self.held is None or not self.held.num_rows:
                part = next(self.tables, None)
                if part is None:
                    raise DataError(
                        "the input has more rows than it had when it was scored; run the command again"
                    )
                self.held = part.table
            piece = self.held.slice(0, rows)
            self.held = self.held.slice(piece.num_rows)
            rows -= piece.num_rows
            taken.append(piece)
        joined = pa.concat_tables(taken)
        named = pa.table({name: joined.column(held) for name, held in self.columns.items()})
        return named, joined.column("kept")


def _from_parquet(source: ParquetRollouts, naming: Naming, scores: _Scores) -> Iterator[pa.Table]:
    named = naming.inputs(source.columns)
    metadata = {k: v for k, v in (source.file.schema_arrow.metadata or {}).items() if k != b"pandas"}
    for batch in source.batches(None):
        added, kept = scores.take(batch.num_rows)
        columns = {new: batch.column(old) for new, old in named.items()}
        joined = pa.table({**columns, **{name: added.column(name) for name in added.column_names}})
        yield joined.filter(kept).replace_schema_metadata(metadata or None)


def _write_parquet(tables: Iterator[pa.Table], out: Path) -> None:
    """Write row groups of equal size, whatever the pieces were."""
    first = next(tables)
    with pq.ParquetWriter(out, first.schema, compression="zstd") as writer:
        held, rows = [first], first.num_rows
        for table in tables:
            held.append(table)
            rows += table.num_rows
            if rows >= _ROWS:
                joined = pa.concat_tables(held)
                writer.write_table(joined.slice(0, _ROWS), row_group_size=_ROWS)
                held, rows = [joined.slice(_ROWS)], rows - _ROWS
        writer.write_table(pa.concat_tables(held), row_group_size=_ROWS)


def _lines_of_tables(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    for table in tables:
        for row in table.to_pylist():
            yield _dump(row).encode() + b"\n"


def _dump(row: Mapping[str, Any]) -> str:
    """A row as JSON, which knows no NaN: null instead."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def _spliced(source: JsonlRollouts, naming: Naming, scores: _Scores) -> Iterator[bytes]:
    """The input's lines as they are, with the scores added before the closing brace."""
    for lines in _by(source.raw(), 4096):
        added, kept = scores.take(len(lines))
        texts = _json_rows(added)
        for line, text, keep in zip(lines, texts, kept.to_pylist(), strict=True):
            if keep:
                yield _joined(line, text, naming)


def _joined(line: bytes, text: str, naming: Naming) -> bytes:
    near = any(not name.isascii() or name.encode() in line for name in naming.rewards)
    if near and naming.touches(record := json.loads(line)):
        named = {new: record[old] for new, old in naming.inputs(record).items()}
        line = json.dumps(named).encode()
    body = line.strip().removeprefix(b"\xef\xbb\xbf")
    inner = body[:-1].rstrip()
    return inner + (b"" if inner == b"{" else b", ") + text.encode() + b"}\n"


def _json_rows(table: pa.Table) -> list[str]:
    """The members of a JSON object for each row of a table of scores, without braces."""
    texts = []
    for name in table.column_names:
        start = f"{json.dumps(name)}: "
        values = table.column(name).to_pylist()
        if any(isinstance(value, list) for value in values):
            texts.append([start + json.dumps(value) for value in values])
        else:  # most columns hold a few values many times
            known = {value: start + json.dumps(value) for value in set(values)}
            texts.append([known[value] for value in values])
    return [", ".join(row) for row in zip(*texts, strict=True)]


def _by(lines: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    held = []
    for line in lines:
        held.append(line)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def _from_jsonl(source: JsonlRollouts, naming: Naming, scores: _Scores) -> Iterator[pa.Table]:
    """Columns of one type each; what Parquet has no type for (mixed types, empty objects) becomes JSON text."""
    types = _types(source)
    named = naming.inputs(types)
    for lines in _by(source.raw(), 4096):
        records = [json.loads(line) for line in lines]
        added, kept = scores.take(len(lines))
        columns = {new: _array([r.get(old) for r in records], types[old]) for new, old in named.items()}
        joined = pa.table({**columns, **{name: added.column(name) for name in added.column_names}})
        yield joined.filter(kept)


def _types(source: JsonlRollouts) -> dict[str, pa.DataType | None]:
    """Read all lines once for the type of each column; None where there is no common one."""
    types: dict[str, pa.DataType | None] = {}
    for lines in _by(source.raw(), 4096):
        records = [json.loads(line) for line in lines]
        for name in dict.fromkeys(key for record in records for key in record):
            found = _type([record.get(name) for record in records])
            known = types.get(name, pa.null())
            types[name] = None if known is None or found is None else _common(known, found)
    return {name: None if kind is None or _unwritable(kind) else kind for name, kind in types.items()}


def _type(values: Sequence[Any]) -> pa.DataType | None:
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None


def _common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    try:
        schemas = [pa.schema([("x", a)]), pa.schema([("x", b)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _unwritable(kind: pa.DataType) -> bool:
    """Whether a type holds an object without members, which Parquet cannot write."""
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_unwritable(kind.field(i).type) for i in range(kind.num_fields))


def _array(values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    if kind is None:
        return pa.array(
            [None if v is None else json.dumps(v, ensure_ascii=False) for v in values], pa.string()
        )
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        raise DataError(
            "a text holds half a character, which Parquet cannot; write --out as .jsonl"
        ) from None


def check_out(out: Path, source: Path, names: Sequence[str]) -> None:
    """Refuse an output that cannot or should not be written, before anything is scored."""
    if out.suffix not in (".parquet", ".jsonl"):
        raise DataError(f"--out {out}: scores are written to .parquet or .jsonl")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and out.samefile(source):
        raise DataError(f"--out {out} is the input; give it another name")
    if out.is_dir():
        raise DataError(f"--out {out} is a folder")
    if out.exists() and out.stat().st_size and not is_output(out, names):
        raise DataError(
            f"--out {out} exists and holds something else than these scores; give it another name"
        )


def scores_of(part: Part, index: int) -> Mapping[str, Any]:
    """Return the columns of one reward in a part, by `value`, `missing`, ... and `old`."""
    names = {f"{field}.{index}": field for field in (*_FIELDS, "old")}
    return {
        field: part.table.column(name) for name, field in names.items() if name in part.table.column_names
    }
