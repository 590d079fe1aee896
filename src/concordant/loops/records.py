"""What a run leaves besides checkpoints, consistent with the last save: metrics.jsonl, rollouts.parquet (samples with
every column), scores.parquet (one record for each rollout and reward).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from concordant.core.table import Table
from concordant.loops.checkpoint import write_atomically
from concordant.scoring.arrays import dump, restore
from concordant.scoring.outcome import Outcome


class Parts:
    """A Parquet file that grows part by part; a part is the rows between two checkpoints."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.target = folder / name, folder / f"{name}.parquet"
        self.waiting: list[pa.Table] = []

    def rewind(self, step: int) -> None:
        """Drop what came after `step`."""
        self.waiting = []
        self.folder.mkdir(exist_ok=True)
        for part in self.folder.iterdir():
            if part.suffix == ".tmp" or int(part.stem) > step:
                part.unlink()

    def commit(self, step: int) -> None:
        """Write what is waiting."""
        if self.waiting:
            _write(self.folder / f"{step:08d}.parquet", _joined(self.waiting))
            self.waiting = []

    def finish(self) -> None:
        """Join all parts and remove them."""
        tables = [pq.read_table(part) for part in sorted(self.folder.glob("*.parquet"))]
        if tables:
            _write(self.target, _joined(tables))
        for part in self.folder.glob("*"):
            part.unlink()
        self.folder.rmdir()


class Records:
    """What happened since the last checkpoint; `commit` makes it durable, `rewind` forgets what came after."""

    def __init__(self, folder: Path) -> None:
        self.metrics = folder / "metrics.jsonl"
        self.rollouts, self.scores = Parts(folder, "rollouts"), Parts(folder, "scores")

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
        self.rollouts.rewind(step)
        self.scores.rewind(step)
        return lines

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def add_rollouts(self, step: int, table: Table, limit: int) -> None:
        """Remember whole groups, up to `limit` rows, with every field and every column but latents."""
        if not limit or not table.rows:
            return
        light = Table({n: table.column(n) for n in table.names if "d" not in table.axes(n)}, table.fields)
        kept = light.take(torch.arange(table.rows) < limit)
        self.rollouts.waiting.append(pa.Table.from_pylist([{"step": step, **row} for row in as_rows(kept)]))

    def add_scores(self, step: int, ids: Sequence[int], outcomes: Mapping[str, Sequence[Outcome]]) -> None:
        """Remember what every reward said about every row (for a reward of pairs, `ids` are those of the left rows)."""
        self.scores.waiting += [score_records(step, ids, name, said) for name, said in outcomes.items()]

    def commit(self, step: int) -> None:
        """Write what came since the last commit."""
        self.rollouts.commit(step)
        self.scores.commit(step)

    def finish(self) -> None:
        """Join all parts into one file of each kind."""
        self.rollouts.finish()
        self.scores.finish()


SCORES = pa.schema(
    {
        "step": pa.int32(), "id": pa.int64(), "reward": pa.dictionary(pa.int32(), pa.string()), "value": pa.float64(),
        "values": pa.list_(pa.float64()), "missing": pa.string(), "confidence": pa.float64(), "kind": pa.string(),
        "detail": pa.string(), "seconds": pa.float64(), "attempts": pa.int32(), "cached": pa.bool_(),
        "sandbox": pa.string(),
    }
)  # fmt: skip
"""A record: `value`, or `values` at the levels of parts, or why both are empty (`missing`); `detail` is JSON; `seconds`
is the wall time of the last attempt; no attempts means that an equal row or the cache had the answer."""


def score_records(step: int, ids: Sequence[int], reward: str, outcomes: Sequence[Outcome]) -> pa.Table:
    """Return one record for each row, as `SCORES` says.

    For a reward of pairs it is one for each pair, under the id of its left row; `detail` has the ids of both rows and
    of the one that was shown on the left.
    """
    parts = [isinstance(o.value, tuple) for o in outcomes]
    columns = {
        "step": [step] * len(outcomes),
        "id": ids,
        "reward": [reward] * len(outcomes),
        "value": [None if part else o.value for o, part in zip(outcomes, parts, strict=True)],
        "values": [o.value if part else None for o, part in zip(outcomes, parts, strict=True)],
        "missing": [o.reason or None for o in outcomes],
        "confidence": [o.confidence for o in outcomes],
        "kind": [o.kind for o in outcomes],
        "detail": [json.dumps(dict(o.detail)) if o.detail else "" for o in outcomes],
        "seconds": [o.seconds for o in outcomes],
        "attempts": [o.attempts for o in outcomes],
        "cached": [o.cached for o in outcomes],
        "sandbox": [o.sandbox for o in outcomes],
    }
    return pa.table(columns, schema=SCORES)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def as_rows(table: Table) -> list[dict[str, Any]]:
    """Return a table as one dictionary per row; step, segment and prompt axes become lists, stacked signals come first.

    The axes of every column are stored under `axes`, so that `as_table` can restore the table. Fields are JSON, with
    arrays as `scoring.arrays` writes them. Columns over pairs stand, as JSON under `pair_columns`, with the row that is
    their left end.
    """
    names = [name for name in table.names if "b" in table.axes(name)]
    paired = [name for name in table.names if "p" in table.axes(name)] if table.ends() else []
    axes = json.dumps({name: " ".join(table.axes(name)) for name in (*names, *paired)})
    columns = {name: table[name].movedim(table.axes(name).index("b"), 0).tolist() for name in names}
    fields = {f"field.{name}": list(map(dump, values)) for name, values in table.fields.items()}
    joined = {**columns, **fields}
    if paired:
        joined["pair_columns"] = _pairs_of_rows(table, paired)
    return [{"axes": axes, **{name: values[i] for name, values in joined.items()}} for i in range(table.rows)]


def _pairs_of_rows(table: Table, names: Sequence[str]) -> list[str]:
    """For each row, as JSON, the pairs that it is the left end of: their place in the columns, and what these say."""
    values = {name: table[name].movedim(table.axes(name).index("p"), 0).tolist() for name in names}
    found: list[list[dict[str, Any]]] = [[] for _ in range(table.rows)]
    for place, left in enumerate(values[table.ends()[0]]):
        if left >= 0:  # a pair without its left end is no pair
            found[left].append({"p": place, **{name: own[place] for name, own in values.items()}})
    return list(map(json.dumps, found))


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float32}


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Restore a table from rows that `as_rows` made (rows of one step)."""
    axes = {name: tuple(text.split()) for name, text in json.loads(rows[0]["axes"]).items()}
    pairs = [pair for row in rows for pair in json.loads(row.get("pair_columns") or "[]")]
    pairs.sort(key=lambda pair: pair["p"])
    columns = {}
    for name, letters in axes.items():
        if "b" in letters:
            columns[name] = (letters, _column([row[name] for row in rows], letters.index("b")))
        elif pairs:
            columns[name] = (letters, _column([pair[name] for pair in pairs], letters.index("p")))
        else:
            kind = torch.int64 if name.rsplit(".", 1)[-1] in ("left", "right") else torch.float32
            columns[name] = (letters, torch.zeros([0] * len(letters), dtype=kind))
    names = [key.removeprefix("field.") for key in rows[0] if key.startswith("field.")]
    fields = {name: [restore(json.loads(row[f"field.{name}"])) for row in rows] for name in names}
    return Table({}).with_columns(columns, fields)


def _column(values: Sequence[Any], dim: int) -> torch.Tensor:
    """The values of a column, of the type of the first, with their rows (or pairs) along axis `dim`."""
    leaf: Any = values
    while isinstance(leaf, list):
        leaf = leaf[0] if leaf else 0.0
    return torch.tensor(values, dtype=_DTYPES[type(leaf)]).movedim(0, dim)
