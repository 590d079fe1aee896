"""A method is a chain of named stages; each stage binds one kernel to columns and makes the column of its name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from concordant.core.binder import add_columns, call_stage, output_axes
from concordant.core.edits import Editable
from concordant.core.errors import ChainError, nearest
from concordant.core.seeds import Progress, Rng
from concordant.core.signature import (
    ArraySpec,
    Columns,
    Schema,
    Signature,
    kernel_name,
    names_of,
    signature_of,
)
from concordant.core.table import Table


@dataclass(frozen=True)
class Part:
    """A kernel with its options; used alone for the parts of an objective."""

    kernel: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.signature.options
        for name in self.options:
            if name not in known:
                raise ChainError(f"{kernel_name(self.kernel)} has no option {name!r}; {nearest(name, known)}")
        for name, default in known.items():
            if default is inspect.Parameter.empty and name not in self.options:
                raise ChainError(f"{kernel_name(self.kernel)} needs the option {name!r}")

    @property
    def signature(self) -> Signature:
        """The kernel's signature."""
        return signature_of(self.kernel)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Call the kernel with these options."""
        return self.kernel(*arrays, **named, **self.options)


def part(kernel: Callable[..., Any], **options: Any) -> Part:
    """Return a kernel with options, as an objective wants it."""
    return Part(kernel, options)


@dataclass(frozen=True)
class Stage(Part):
    """A part bound to columns; `keeps` makes its boolean column restrict the table's `keep`."""

    reads: Mapping[str, Columns] = field(default_factory=dict)
    keeps: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        returns = self.signature.returns
        if self.keeps and not (
            isinstance(returns, ArraySpec) and returns.kind == "Bool" and returns.dims[0] == "b"
        ):
            raise ChainError(f"keep({kernel_name(self.kernel)}): a keep stage must return Bool[Tensor, 'b']")

    @property
    def inputs(self) -> dict[str, Columns]:
        """Bound parameters: the column(s) named, else for a parameter without default the column of its own name."""
        arrays = self.signature.arrays
        return {p: self.reads.get(p, p) for p, spec in arrays.items() if p in self.reads or spec.required}

    @property
    def columns_read(self) -> list[str]:
        """Flat list of the columns this stage reads."""
        return [name for columns in self.inputs.values() for name in names_of(columns)]

    def outputs(self, name: str) -> dict[str, ArraySpec]:
        """Columns this stage makes when called `name`: itself, or `name.field` for a NamedTuple."""
        returns = self.signature.returns
        if isinstance(returns, ArraySpec):
            return {name: returns}
        return {f"{name}.{part_name}": spec for part_name, spec in returns.items()}


def stage(kernel: Callable[..., Any], **arguments: Any) -> Stage:
    """Bind a kernel: array parameters take column names (a tuple stacks them along `k`), all others are options."""
    return _make(kernel, arguments, keeps=False)


def keep(kernel: Callable[..., Any], **arguments: Any) -> Stage:
    """Bind a kernel whose boolean column also restricts the table's `keep`; later statistics see it."""
    return _make(kernel, arguments, keeps=True)


def _make(kernel: Callable[..., Any], arguments: Mapping[str, Any], keeps: bool) -> Stage:
    signature = signature_of(kernel)
    for name, value in arguments.items():
        if name not in signature.parameters:
            made = "the binder makes it from `keep` and what is missing" if name == "valid" else None
            raise ChainError(
                f"{signature.name} has no parameter {name!r}; {made or nearest(name, signature.parameters)}"
            )
        if name in signature.arrays and not (value and isinstance(value, str | tuple)):
            raise ChainError(
                f"{signature.name}: {name!r} takes a column name or a tuple of names, got {value!r}"
            )
    options = {name: value for name, value in arguments.items() if name in signature.options}
    return Stage(kernel, options, {n: v for n, v in arguments.items() if n in signature.arrays}, keeps)


@dataclass(frozen=True)
class Context:
    """What a run hands to kernels that ask for it: random stream, progress, state by stage name."""

    rng: Rng = field(default_factory=Rng)
    progress: Progress = field(default_factory=Progress)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain(Editable):
    """Named stages in order. The order is the method."""

    stages: Mapping[str, Stage]

    def __post_init__(self) -> None:
        made: set[str] = set()
        later = {out for name, stage_ in self.stages.items() for out in stage_.outputs(name)}
        for name, stage_ in self.stages.items():
            for column in stage_.columns_read:
                if column in later and column not in made:
                    raise ChainError(
                        f"stage {name!r} reads {column!r} before it is made; put {column!r} first"
                    )
                owner = column.split(".")[0]
                if column not in made and owner in self.stages:
                    fields = ", ".join(self.stages[owner].outputs(owner))
                    raise ChainError(f"stage {name!r} reads {column!r}, but stage {owner!r} makes: {fields}")
            made.update(stage_.outputs(name))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns the chain needs from the table."""
        made = {out for name, stage_ in self.stages.items() for out in stage_.outputs(name)}
        read = [column for stage_ in self.stages.values() for column in stage_.columns_read]
        return tuple(dict.fromkeys(column for column in read if column not in made))

    def init(self) -> dict[str, Any]:
        """Return the starting state of every stateful stage."""
        return {
            name: cast(Any, s.kernel).init()
            for name, s in self.stages.items()
            if "state" in s.signature.context.values()
        }

    def schema(self, base: Schema) -> dict[str, tuple[str, ...]]:
        """Return the axes of every column after the chain, given those of the table; checks every binding."""
        known = dict(base)
        for name, stage_ in self.stages.items():
            axes = output_axes(name, stage_, known)
            for column in axes:
                if column in known:
                    raise ChainError(
                        f"stage {name!r} would overwrite the column {column!r}; give the stage another name"
                    )
            known.update(axes)
        return known

    def apply(self, table: Table, context: Context | None = None) -> tuple[Table, dict[str, Any]]:
        """Run all stages; return the table with their columns, and the new state."""
        context = context or Context(state=self.init())
        self.schema(table.schema)
        state = dict(context.state)
        with torch.no_grad():
            for name, stage_ in self.stages.items():
                value, state[name] = call_stage(name, stage_, table, context, state.get(name))
                table = add_columns(table, name, stage_, value)
        return table, {name: value for name, value in state.items() if value is not None}

    def run(self, table: Table, context: Context | None = None) -> Table:
        """Run a chain without state of its own; return the table with the columns of all stages."""
        if context is None and self.init():
            raise ChainError(
                f"stages {sorted(self.init())} keep state; use apply(table, context) and carry the state on"
            )
        return self.apply(table, context)[0]


def chain(**stages: Stage) -> Chain:
    """Return a chain of these stages, in this order."""
    for name, value in stages.items():
        if not isinstance(value, Stage):
            raise ChainError(f"{name!r} is {value!r}; make it with stage(kernel, ...) or keep(kernel, ...)")
    return Chain(stages)
