"""Edits of a chain, the difference of two chains as data, and the explanation of a row's credit."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch

from concordant.core.errors import ChainError, nearest
from concordant.core.signature import kernel_name, signature_of

if TYPE_CHECKING:
    from concordant.core.chain import Chain, Stage
    from concordant.core.table import Table


def _substitute(
    columns: str | tuple[str, ...], old: str, new: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """Replace one column reference; a tuple put in place of a member of a tuple is spliced in."""
    if isinstance(columns, str):
        return new if columns == old else columns
    spliced: list[str] = []
    for column in columns:
        spliced.extend(((new,) if isinstance(new, str) else new) if column == old else (column,))
    return tuple(spliced)


class Editable:
    """The edits of a chain. `stages` is the chain's ordered mapping; no edit changes the chain it is called on."""

    stages: "Mapping[str, Stage]"

    def _with(self, stages: "Mapping[str, Stage]") -> Self:
        return replace(self, stages=dict(stages))  # type: ignore[type-var]

    def _stage(self, name: str) -> "Stage":
        if name not in self.stages:
            raise ChainError(f"no stage {name!r} in the chain; {nearest(name, self.stages)}")
        return self.stages[name]

    def set(self, name: str, /, **options: Any) -> Self:
        """Change options of a stage."""
        stage = self._stage(name)
        return self._with({**self.stages, name: replace(stage, options={**stage.options, **options})})

    def swap(self, name: str, kernel: Callable[..., Any], /, **options: Any) -> Self:
        """Put another kernel in a stage; bindings of parameters that both kernels have are kept."""
        stage = self._stage(name)
        arrays = signature_of(kernel).arrays
        lost = [parameter for parameter in stage.reads if parameter not in arrays]
        if lost:
            raise ChainError(
                f"swap({name!r}): {kernel_name(kernel)} has no parameter {lost[0]!r} to bind {stage.reads[lost[0]]!r}"
            )
        return self._with({**self.stages, name: replace(stage, kernel=kernel, options=options)})

    def without(self, name: str) -> Self:
        """Remove a stage; its readers read its `x` instead."""
        stage = self._stage(name)
        source = stage.reads.get("x")
        rest = {other: s for other, s in self.stages.items() if other != name}
        made = set(stage.outputs(name))
        for other, reader in rest.items():
            if not made & set(reader.columns_read):
                continue
            if source is not None and made == {name}:
                rest[other] = replace(
                    reader, reads={p: _substitute(c, name, source) for p, c in reader.inputs.items()}
                )
                continue
            if any((isinstance(c, str) and c in made) or c == (name,) for c in reader.inputs.values()):
                raise ChainError(
                    f"without({name!r}): it has no `x` that {other!r} could read instead; rewire {other!r} first"
                )
            left = {
                p: c if isinstance(c, str) else tuple(n for n in c if n not in made)
                for p, c in reader.inputs.items()
            }
            rest[other] = replace(reader, reads=left)
        return self._with(rest)

    def insert(self, before: str, **stages: "Stage") -> Self:
        """Insert stages before another one; nothing is rewired."""
        self._stage(before)
        items: list[tuple[str, Stage]] = []
        for name, stage in self.stages.items():
            items.extend(stages.items() if name == before else ())
            items.append((name, stage))
        taken = [name for name in stages if name in self.stages]
        if taken:
            raise ChainError(
                f"insert: the chain already has a stage {taken[0]!r}; give the new one another name"
            )
        return self._with(dict(items))

    def rewire(self, name: str, /, **reads: str | tuple[str, ...]) -> Self:
        """Bind parameters of a stage to other columns."""
        stage = self._stage(name)
        for parameter in reads:
            if parameter not in stage.signature.arrays:
                raise ChainError(
                    f"rewire({name!r}): no array parameter {parameter!r}; {nearest(parameter, stage.signature.arrays)}"
                )
        return self._with({**self.stages, name: replace(stage, reads={**stage.reads, **reads})})

    def through(self, column: str, **stages: "Stage") -> Self:
        """Send all readers of a column through one new stage that reads it."""
        if len(stages) != 1:
            raise ChainError("through(column, name=stage(...)) takes exactly one stage")
        (new, stage), *_ = stages.items()
        if column not in stage.columns_read:
            raise ChainError(f"through({column!r}): the stage {new!r} does not read {column!r}")
        readers = [name for name, s in self.stages.items() if column in s.columns_read]
        if not readers:
            read = [c for s in self.stages.values() for c in s.columns_read]
            raise ChainError(f"through({column!r}): no stage reads it; {nearest(column, read)}")
        edited = {
            name: replace(s, reads={p: _substitute(c, column, new) for p, c in s.inputs.items()})
            if name in readers
            else s
            for name, s in self.stages.items()
        }
        return self._with(edited).insert(readers[0], **stages)


@dataclass(frozen=True)
class Change:
    """One difference between two chains: a stage added or removed, or its kernel, an option or a binding changed."""

    stage: str
    what: str
    before: Any
    after: Any


def difference(a: "Chain", b: "Chain") -> list[Change]:
    """Return what turns chain `a` into chain `b`, as data."""
    changes = []
    for name in dict.fromkeys([*a.stages, *b.stages]):
        if name not in b.stages or name not in a.stages:
            before, after = (kernel_name(c.stages[name].kernel) if name in c.stages else None for c in (a, b))
            changes.append(Change(name, "stage", before, after))
            continue
        old, new = a.stages[name], b.stages[name]
        if old.kernel != new.kernel:
            changes.append(Change(name, "kernel", kernel_name(old.kernel), kernel_name(new.kernel)))
        pairs = {"option": (all_options(old), all_options(new)), "reads": (old.inputs, new.inputs)}
        for what, (left, right) in pairs.items():
            shared = left.keys() & right.keys() if old.kernel != new.kernel else left.keys() | right.keys()
            changes.extend(
                Change(name, f"{what} {key}", left.get(key), right.get(key))
                for key in sorted(shared)
                if left.get(key) != right.get(key)
            )
        if old.keeps != new.keeps:
            changes.append(Change(name, "keeps", old.keeps, new.keeps))
    common = [name for name in a.stages if name in b.stages]
    if common != [name for name in b.stages if name in a.stages]:
        changes.append(Change("*", "order", common, [name for name in b.stages if name in a.stages]))
    return changes


def all_options(part: Any) -> dict[str, Any]:
    """Return the options of a part or stage with defaults filled in."""
    return {name: part.options.get(name, default) for name, default in part.signature.options.items()}


@dataclass(frozen=True)
class Step:
    """How one stage contributed to one row."""

    stage: str
    kernel: str
    summary: str
    inputs: dict[str, Any]
    value: Any


def _at_row(table: "Table", column: str, row: int) -> Any:
    values, axes = table[column], table.axes(column)
    if "b" in axes:
        return values.select(axes.index("b"), row).tolist()
    if axes == ("p",):  # the pairs that the row is in
        ends = [table[name] for name in table.ends() if len(table[name]) == len(values)]
        inside = torch.stack([end == row for end in ends]).any(0) if ends else torch.ones_like(values).bool()
        return values[inside].tolist()
    return values.tolist()


def explain(chain: "Chain", table: "Table", row: int) -> list[Step]:
    """Return, stage by stage, the inputs and the value that one row (a position in the table) got.

    `table` is the table after the chain ran. Of columns over pairs those are shown that the row is in.
    """
    if not 0 <= row < table.rows:
        raise ChainError(f"row {row} is not in the table of {table.rows} rows; rows count from 0")
    steps = []
    for name, stage in chain.stages.items():
        inputs = {column: _at_row(table, column, row) for column in dict.fromkeys(stage.columns_read)}
        values = {column: _at_row(table, column, row) for column in stage.outputs(name)}
        summary = (stage.kernel.__doc__ or "").strip().splitlines()
        value = values.get(name, values)
        steps.append(Step(name, kernel_name(stage.kernel), summary[0] if summary else "", inputs, value))
    return steps


def as_data(chain: "Chain") -> dict[str, Any]:
    """Return a chain as plain data: kernel, resolved options, columns read."""
    return {
        name: {
            "kernel": kernel_name(s.kernel),
            "options": all_options(s),
            "reads": s.inputs,
            "keeps": s.keeps,
        }
        for name, s in chain.stages.items()
    }


def changes_as_data(changes: list[Change]) -> list[dict[str, Any]]:
    """Return changes as plain dictionaries."""
    return [asdict(change) for change in changes]
