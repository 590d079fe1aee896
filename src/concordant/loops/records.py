"""What a run leaves besides checkpoints: metrics.jsonl and rollouts.parquet, consistent with the last save."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from concordant.core.table import Table
from concordant.loops.checkpoint import write_atomically


class Records:
    """Metrics and rollouts since the last checkpoint; `commit` makes them durable, `rewind` forgets what came after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.parts = folder / "rollouts"
        self.rows: list[dict[str, Any]] = []

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop everything after `step`; return the metric lines that remain."""
        lines: list[dict[str, Any]] = []
        if self.metrics.exists():
            for text in self.metrics.read_text().splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:  # the line being written when the process was killed
                    break
                if line["step"] <= step:
                    lines.append(line)
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self.parts.mkdir(exist_ok=True)
        for part in self.parts.iterdir():
            if part.suffix == ".tmp" or int(part.stem) > step:
                part.unlink()
        return lines

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def add_rollouts(self, step: int, table: Table, limit: int) -> None:
        """Remember whole groups, up to `limit` rows, with every column and field."""
        if not limit or not table.rows:
            return
        keep = torch.arange(table.rows) < limit
        for row in as_rows(table.take(keep)):
            self.rows.append({"step": step, **row})

    def commit(self, step: int) -> None:
        """Write the rollouts since the last commit as one part."""
        if self.rows:
            _write(self.parts / f"{step:08d}.parquet", self.rows)
            self.rows = []

    def finish(self) -> None:
        """Join all parts into rollouts.parquet and remove them."""
        tables = [pq.read_table(part) for part in sorted(self.parts.glob("*.parquet"))]
        if tables:
            target = self.folder / "rollouts.parquet"
            temporary = target.with_name(target.name + ".tmp")
            pq.write_table(
                pa.concat_tables(tables, promote_options="permissive"), temporary, compression="zstd"
            )
            temporary.replace(target)
        for part in self.parts.glob("*"):
            part.unlink()
        self.parts.rmdir()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
    temporary.replace(path)


def as_rows(table: Table) -> list[dict[str, Any]]:
    """Return a table as one dictionary per row; step, segment and prompt axes become lists, stacked signals come first.

    The axes of every column are stored under `axes`, so that `as_table` can restore the table.
    """
    names = [name for name in table.names if "b" in table.axes(name)]
    axes = json.dumps({name: " ".join(table.axes(name)) for name in names})
    columns = {name: table[name].movedim(table.axes(name).index("b"), 0).tolist() for name in names}
    fields = {f"field.{name}": [json.dumps(v) for v in values] for name, values in table.fields.items()}
    joined = {**columns, **fields}
    return [{"axes": axes, **{name: values[i] for name, values in joined.items()}} for i in range(table.rows)]


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float32}


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Restore a table from rows that `as_rows` made (rows of one step)."""
    axes = {name: tuple(text.split()) for name, text in json.loads(rows[0]["axes"]).items()}
    columns = {}
    for name, letters in axes.items():
        values = [row[name] for row in rows]
        leaf = values[0]
        while isinstance(leaf, list):
            leaf = leaf[0] if leaf else 0.0
        tensor = torch.tensor(values, dtype=_DTYPES[type(leaf)])
        columns[name] = (letters, tensor.movedim(0, letters.index("b")))
    names = [key.removeprefix("field.") for key in rows[0] if key.startswith("field.")]
    fields = {name: [json.loads(row[f"field.{name}"]) for row in rows] for name in names}
    return Table({}).with_columns(columns, fields)
