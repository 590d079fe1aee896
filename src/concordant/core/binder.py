"""The binder: gives a stage's kernel its columns, its `valid` mask and its context, and stores what it returns."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from concordant.core.errors import ChainError, nearest
from concordant.core.signature import Schema, names_of
from concordant.core.table import Table

if TYPE_CHECKING:
    from concordant.core.chain import Context, Stage

Axes = tuple[str, ...]


def bind(
    name: str, stage: "Stage", schema: Schema
) -> tuple[dict[str, Axes], dict[str, bool], dict[str, Axes]]:
    """Check every binding of a stage; return the axes of its inputs, which are mapped over `k`, what `*e` means."""
    axes: dict[str, Axes] = {}
    mapped: dict[str, bool] = {}
    rest: dict[str, Axes] = {}
    for parameter, columns in stage.inputs.items():
        spec = stage.signature.arrays[parameter]
        for column in names_of(columns):
            if column not in schema:
                raise ChainError(
                    f"stage {name!r}: no column {column!r} for {parameter!r}; {nearest(column, schema)}"
                )
        found = {schema[column] for column in names_of(columns)}
        if len(found) > 1:
            raise ChainError(
                f"stage {name!r}: {columns} differ in axes {sorted(found)}; only equal ones can be stacked"
            )
        given = found.pop() if isinstance(columns, str) else ("k", *found.pop())
        mapped[parameter] = given[:1] == ("k",) and "k" not in spec.dims
        axes[parameter] = given[1:] if mapped[parameter] else given
        if not spec.match(axes[parameter], rest):
            raise ChainError(
                f"stage {name!r}: {parameter!r} of {stage.signature.name} wants [{' '.join(spec.dims)}], "
                f"but {columns!r} is [{' '.join(given)}]"
            )
    if any(mapped.values()) and "state" in stage.signature.context.values():
        raise ChainError(f"stage {name!r}: a stateful kernel takes one column; make one stage for each")
    return axes, mapped, rest


def output_axes(name: str, stage: "Stage", schema: Schema) -> dict[str, Axes]:
    """Return the columns a stage makes, with their axes."""
    _, mapped, rest = bind(name, stage, schema)
    extra = ("k",) if any(mapped.values()) else ()
    made = {column: extra + spec.fill(rest) for column, spec in stage.outputs(name).items()}
    if stage.keeps and made[name] != ("b",):
        raise ChainError(
            f"keep stage {name!r} makes [{' '.join(made[name])}]; `keep` needs one boolean a row, [b]"
        )
    return made


def call_stage(name: str, stage: "Stage", table: Table, context: "Context", state: Any) -> tuple[Any, Any]:
    """Run one stage's kernel on the table; return its value and its new state (None for a kernel without state)."""
    axes, mapped, _ = bind(name, stage, table.schema)
    arrays: dict[str, Tensor] = {}
    for parameter, columns in stage.inputs.items():
        values = [table[column] for column in names_of(columns)]
        arrays[parameter] = values[0] if isinstance(columns, str) else torch.stack(values)
    made = {"rng": context.rng.child(name), "progress": context.progress, "state": state}
    given = {parameter: made[kind] for parameter, kind in stage.signature.context.items()}
    if "state" in stage.signature.context.values():
        value, state = _call(stage, arrays, axes, given, table)
        return value, state
    if not any(mapped.values()):
        return _call(stage, arrays, axes, given, table), None
    sizes = {len(arrays[parameter]) for parameter, over in mapped.items() if over}
    if len(sizes) > 1:
        raise ChainError(f"stage {name!r}: stacked inputs differ in length: {sorted(sizes)}")
    each = []
    for k in range(sizes.pop()):
        here = {parameter: v[k] if mapped[parameter] else v for parameter, v in arrays.items()}
        each.append(_call(stage, here, axes, given, table))
    if isinstance(each[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), None
    return torch.stack(each), None


def _call(
    stage: "Stage", arrays: dict[str, Tensor], axes: dict[str, Axes], given: dict[str, Any], table: Table
) -> Any:
    if stage.signature.takes_valid:
        given = {**given, "valid": _valid(arrays, axes, table)}
        pairs = "p" in axes[next(iter(arrays))]
        for p, v in arrays.items():
            if v.is_floating_point() and (pairs or "p" not in axes[p]):
                arrays = {**arrays, p: v.masked_fill(v.isnan(), 0.0)}
    return stage.kernel(**arrays, **given, **stage.options)


def _valid(arrays: dict[str, Tensor], axes: dict[str, Axes], table: Table) -> Tensor:
    """`keep` AND nothing bound is missing, in the shape of the first array; for pairs, rows are read at both ends."""
    first, like = arrays[next(iter(arrays))], axes[next(iter(arrays))]
    there: list[tuple[Tensor, Axes]] = [(table["keep"], ("b",))] if "keep" in table else []
    for parameter, values in arrays.items():
        if values.is_floating_point():
            there.append((~values.isnan(), axes[parameter]))
        elif values.dtype != torch.bool and axes[parameter][-1] in ("b", "p"):  # -1 in `segment`: outside
            there.append((values >= 0, axes[parameter]))
    valid = torch.ones_like(first, dtype=torch.bool)
    for present, named in there:
        if "p" in like and "b" in named:
            ends = [arrays[end] if end in arrays else table[end] for end in ("left", "right")]
            one, two = (present.index_select(named.index("b"), end.clamp(min=0)) for end in ends)
            present, named = one & two, tuple("p" if axis == "b" else axis for axis in named)
        if "p" in like or "p" not in named:  # a missing pair is not a missing row
            valid = valid & _align(present, named, like)
    return valid


def _align(present: Tensor, axes: Axes, like: Axes) -> Tensor:
    """Bring a mask to other axes: all over those that are lacking there, broadcast over those it lacks."""
    for i in reversed(range(len(axes))):
        if axes[i] not in like:
            present = present.all(i)
    shared = [axis for axis in axes if axis in like]
    return present.reshape([present.shape[shared.index(axis)] if axis in shared else 1 for axis in like])


def add_columns(table: Table, name: str, stage: "Stage", value: Any) -> Table:
    """Return the table with a stage's result; a keep stage also restricts `keep`."""
    axes = output_axes(name, stage, table.schema)
    values = [value] if isinstance(value, Tensor) else list(value)
    for (column, letters), made in zip(axes.items(), values, strict=True):
        wrong = made.dim() != len(letters) or any(
            size != table.sizes.get(axis, size) for axis, size in zip(letters, made.shape, strict=True)
        )
        if wrong:
            raise ChainError(
                f"stage {name!r}: {column!r} should be [{' '.join(letters)}], got shape {tuple(made.shape)}"
            )
    made_columns = {column: (letters, v) for (column, letters), v in zip(axes.items(), values, strict=True)}
    if stage.keeps:
        before = table["keep"] if "keep" in table else torch.ones_like(values[0])
        made_columns["keep"] = (("b",), before & values[0])
    return table.with_columns(made_columns)
