"""Whose rollouts are these? Which column of a file is which field, and which rows are compared with each other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from concordant.core.errors import DataError, nearest

SUFFIXES = ("missing", "seconds", "attempts", "cached", "sandbox")
"""What stands beside each score that was written here, as `name_missing` and so on."""
_OURS = "field."
_VERL = {"prompt": "input", "completion": "output", "answer": "gts"}


@dataclass(frozen=True)
class Layout:
    """How to read the columns of a file."""

    format: str
    """Whose file it is: `concordant`, `trl`, `verl` or `plain`."""
    fields: Mapping[str, str]
    """Column of each field that is data; a reward with `**kwargs` is given these."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Column of each further field, for rewards that ask for it by name (scores, advantages, ids)."""
    encoded: frozenset[str] = frozenset()
    """Columns whose cells are JSON."""
    step: str = ""
    """Column of the training step; empty if there is none."""
    group: tuple[str, ...] = ()
    """Neighbouring rows that are equal in these columns are a group; empty: every row is its own."""
    lengths: Mapping[str, str] = field(default_factory=dict)
    """Column of booleans whose sum is the number of values at a level (`step`, `segment`)."""

    def column(self, name: str) -> str:
        """Return the column of a field."""
        return self.fields.get(name) or self.others[name]

    @property
    def names(self) -> tuple[str, ...]:
        """All fields that a reward may ask for."""
        return tuple(dict.fromkeys((*self.fields, *self.others)))


def recognise(columns: Sequence[str]) -> Layout:
    """Tell from the names of its columns who wrote a file of rollouts.

    - `concordant`: `rollouts.parquet` of a run, fields as JSON in `field.*`, groups numbered within a step;
    - `trl`: `completions_*.parquet` (`step`, `prompt`, `completion`, rewards, `advantage`);
    - `verl`: a dump of rollouts (`input`, `output`, `gts`, `score`, `step`), read as prompt, completion and answer;
    - `plain`: anything else; every column is the field of its name.

    Where there is no column `group`, rows in a row with the same prompt (in the same step) are a group.
    """
    known = set(columns) - set(_bookkeeping(columns))
    if any(name.startswith(_OURS) for name in known) and {"axes", "step", "group"} <= known:
        return _ours(columns)
    names = [name for name in columns if name in known]
    step = "step" if "step" in known else ""
    if {"input", "output", "score"} <= known and not {"prompt", "completion"} & known:
        taken = {name: column for name, column in _VERL.items() if column in known}
        rest = {name: name for name in names if name not in (*taken.values(), "score", "step")}
        others = {name: name for name in names if name not in rest}
        return Layout("verl", {**taken, **rest}, others, step=step, group=_group(known, step, "input"))
    trl = {"step", "prompt", "completion", "advantage"} <= known
    aside = ("step", "advantage") if trl else ()
    fields = {name: name for name in names if name not in aside}
    others = {name: name for name in aside}
    return Layout("trl" if trl else "plain", fields, others, step=step, group=_group(known, step, "prompt"))


def _ours(columns: Sequence[str]) -> Layout:
    fields = {name.removeprefix(_OURS): name for name in columns if name.startswith(_OURS)}
    fields.pop("missing", None)
    others = {name: name for name in columns if not name.startswith(_OURS) and name not in fields}
    lengths = {level: name for level, name in (("step", "mask"), ("segment", "turn")) if name in others}
    return Layout(
        "concordant", fields, others, frozenset(fields.values()), "step", ("step", "group"), lengths
    )


def _group(known: set[str], step: str, prompt: str) -> tuple[str, ...]:
    by = "group" if "group" in known else prompt if prompt in known else ""
    return tuple(name for name in (step, by) if name) if by else ()


def _bookkeeping(columns: Iterable[str]) -> list[str]:
    """Columns that stand beside scores of an earlier scoring."""
    known = set(columns)
    scored = [name.removesuffix("_missing") for name in known if name.endswith("_missing")]
    scored = [name for name in scored if name in known and f"{name}_attempts" in known]
    return [f"{name}_{suffix}" for name in scored for suffix in SUFFIXES if f"{name}_{suffix}" in known]


def arrange(
    layout: Layout,
    columns: Sequence[str],
    file: str,
    renamed: Mapping[str, str],
    group: str | None,
    scores: Iterable[str],
) -> Layout:
    """Fit what was recognised to what the user says.

    Args:
        layout: from `recognise`.
        columns: columns of the file.
        file: its name, for messages.
        renamed: field to column.
        group: column whose equal values make a group (within a step, where there are steps); None keeps the layout's.
        scores: columns with scores, old and new; they are no data.
    """
    for column in (*renamed.values(), *([group] if group else [])):
        if column not in columns:
            raise DataError(f"{file} has no column {column!r}; {nearest(column, columns)}")
    aside = {name for name in scores if name not in renamed}
    fields = {name: column for name, column in layout.fields.items() if name not in aside} | dict(renamed)
    others = {**layout.others, **{name: name for name in columns if name in aside}}
    by = (*([layout.step] if layout.step and layout.step != group else []), group) if group else layout.group
    return replace(
        layout, fields=fields, others={n: c for n, c in others.items() if n not in fields}, group=by
    )
