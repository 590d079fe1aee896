"""The table of rollouts: named tensor columns over rows, plus per-row Python fields for reward functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from concordant.core.errors import DataError, nearest

AXES = {
    "b": "rows (one sampled sequence each)",
    "s": "steps (tokens, denoising steps, environment steps)",
    "n": "segments (turns, process steps)",
    "k": "stacked signals",
    "p": "pairs",
    "q": "prompt tokens",
    "u": "checks of a suite",
    "d": "latent dimensions",
}
_SHARED = ("b", "s", "n", "q", "p")  # one size in the whole table; `k`, `u` and `d` may differ per column


@dataclass(frozen=True)
class Column:
    """A tensor and the letters of its axes."""

    values: Tensor
    axes: tuple[str, ...]


def missing_value(values: Tensor) -> float | int | bool:
    """Return what stands for "missing" or "not there" in a column of this dtype: NaN, -1 or False."""
    if values.dtype == torch.bool:
        return False
    return float("nan") if values.is_floating_point() else -1


class Table:
    """Named columns over rows `b`.

    Missing is NaN in a float column and -1 in an id column, never 0. `fields` hold one Python object a row
    (prompt, completion, answer, ...); kernels never see them. A table is never changed in place.
    """

    def __init__(
        self, columns: Mapping[str, Column], fields: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self._columns = dict(columns)
        self.fields: dict[str, list[Any]] = {name: list(values) for name, values in (fields or {}).items()}
        self.sizes = self._check()

    @classmethod
    def of(
        cls, columns: Mapping[str, tuple[str, Tensor]], fields: Mapping[str, Sequence[Any]] | None = None
    ) -> "Table":
        """Build a table from `{"mask": ("b s", tensor), ...}`."""
        return cls(
            {name: Column(values, tuple(axes.split())) for name, (axes, values) in columns.items()}, fields
        )

    def _check(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        owner: dict[str, str] = {}
        for name, column in self._columns.items():
            if len(column.axes) != column.values.dim():
                raise DataError(
                    f"column {name!r} declares axes {column.axes} but has shape {tuple(column.values.shape)}; "
                    "give one axis letter per dimension"
                )
            for axis, size in zip(column.axes, column.values.shape, strict=True):
                if axis not in AXES:
                    raise DataError(f"column {name!r}: unknown axis {axis!r}; {nearest(axis, AXES)}")
                if axis in _SHARED and sizes.setdefault(axis, size) != size:
                    raise DataError(
                        f"column {name!r} has {size} along {axis!r} ({AXES[axis]}), "
                        f"but {owner[axis]!r} has {sizes[axis]}; all columns share this axis"
                    )
                owner.setdefault(axis, name)
        for name, values in self.fields.items():
            if len(values) != sizes.setdefault("b", len(values)):
                raise DataError(f"field {name!r} has {len(values)} entries for {sizes['b']} rows")
        return sizes

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.sizes.get("b", 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in the order they were made."""
        return tuple(self._columns)

    @property
    def schema(self) -> dict[str, tuple[str, ...]]:
        """Axes of every column."""
        return {name: column.axes for name, column in self._columns.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._columns:
            raise DataError(f"no column {name!r} in the table; {nearest(name, self._columns)}")
        return self._columns[name].values

    def column(self, name: str) -> Column:
        """A column with its axes."""
        self[name]
        return self._columns[name]

    def axes(self, name: str) -> tuple[str, ...]:
        """Axis letters of a column."""
        return self.column(name).axes

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}[{' '.join(column.axes)}]" for name, column in self._columns.items())
        return f"Table({self.rows} rows: {shapes})"

    def with_columns(
        self,
        columns: Mapping[str, tuple[str | tuple[str, ...], Tensor]] | None = None,
        fields: Mapping[str, Sequence[Any]] | None = None,
    ) -> "Table":
        """Return a table with these columns and fields added or replaced."""
        added = {
            name: Column(values, tuple(axes.split()) if isinstance(axes, str) else tuple(axes))
            for name, (axes, values) in (columns or {}).items()
        }
        return Table({**self._columns, **added}, {**self.fields, **(fields or {})})

    def ends(self) -> tuple[str, ...]:
        """Names of the columns that hold the ends of pairs: ids [p] called `left` or `right`, or `name.left`, ..."""
        return tuple(
            name
            for name, column in self._columns.items()
            if column.axes == ("p",)
            and not (column.values.is_floating_point() or column.values.dtype == torch.bool)
            and name.rsplit(".", 1)[-1] in ("left", "right")
        )

    def _needs_ends(self, doing: str) -> None:
        paired = [name for name, column in self._columns.items() if "p" in column.axes]
        if paired and not self.ends():
            raise DataError(
                f"cannot {doing}: {paired} are pair columns, but the table does not say which rows they pair; add the "
                "columns `left` and `right` (row indices), or the two that same_group_pairs makes"
            )

    def _moved(self, index: Tensor) -> dict[str, Tensor]:
        """Ends of pairs as they are among the rows of an index; -1 where the row is not among them."""
        places = torch.arange(len(index), device=index.device)
        place = places.new_full((self.rows,), self.rows + len(index)).scatter_reduce(0, index, places, "amin")
        place = torch.where(place < len(index), place, -1)
        ends = {name: self[name].long() for name in self.ends()}
        return {name: torch.where(end >= 0, place[end.clamp(min=0)], -1) for name, end in ends.items()}

    def take(self, rows: Tensor) -> "Table":
        """Return the rows of an index or of a boolean mask.

        Pairs stay if both ends are taken, and point at the same rows as before (at the first copy of a row that is
        taken twice). Columns along neither rows nor pairs are left out.
        """
        self._needs_ends("take rows")
        index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows.long()
        chosen = {"b": index}
        moved = self._moved(index) if self.ends() else {}
        if moved:
            chosen["p"] = torch.stack([end >= 0 for end in moved.values()]).all(0).nonzero()[:, 0]
        columns = {}
        for name, column in self._columns.items():
            values, axes = moved.get(name, column.values), set(column.axes) & set(chosen)
            for axis in axes:
                values = values.index_select(column.axes.index(axis), chosen[axis])
            if axes:
                columns[name] = Column(values, column.axes)
        each = index.tolist()
        return Table(columns, {name: [values[i] for i in each] for name, values in self.fields.items()})

    @classmethod
    def concat(cls, tables: Sequence["Table"]) -> "Table":
        """Stack tables row-wise; shorter step, segment, check and prompt axes are padded (prompts on the left).

        Padding is what "not there" means for the column: False, -1, 0.0 for steps, NaN for segments and checks. Pairs
        are stacked too, and point at the same rows as before.
        """
        tables = [table for table in tables if table.rows]
        if not tables:
            raise DataError("concat needs at least one table with rows")
        first = tables[0]
        for table in tables[1:]:
            if table.schema != first.schema or set(table.fields) != set(first.fields):
                odd = sorted(set(table.schema.items()) ^ set(first.schema.items()))
                raise DataError(f"tables to concat differ in columns or fields: {odd}")
        first._needs_ends("concat tables")
        before = list(accumulate((table.rows for table in tables), initial=0))
        columns = {}
        for name, axes in first.schema.items():
            parts = [table[name] for table in tables]
            if name in first.ends():
                parts = [torch.where(end >= 0, end + n, -1) for end, n in zip(parts, before, strict=False)]
            along = "b" if "b" in axes else "p"
            if along not in axes:
                raise DataError(f"cannot concat {name!r} {list(axes)}: it is along neither rows nor pairs")
            columns[name] = Column(torch.cat(_pad(parts, axes), dim=axes.index(along)), axes)
        fields = {name: [v for table in tables for v in table.fields[name]] for name in first.fields}
        return cls(columns, fields)


def _pad(parts: list[Tensor], axes: tuple[str, ...]) -> list[Tensor]:
    for dim, axis in enumerate(axes):
        if axis not in ("s", "n", "q", "u"):
            continue
        width = max(part.shape[dim] for part in parts)
        for i, part in enumerate(parts):
            shape = list(part.shape)
            shape[dim] = width - part.shape[dim]
            outside = 0.0 if axis == "s" and part.is_floating_point() else missing_value(part)
            fill = part.new_full(shape, outside)
            parts[i] = torch.cat([fill, part] if axis == "q" else [part, fill], dim=dim)
    return parts
