"""Stored rollouts of a run: read back, explained stage by stage, and a few of them as samples."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concordant.core.errors import DataError
from concordant.core.signature import kernel_name
from concordant.report.pictures import field_image
from concordant.scoring.arrays import describe, is_array, restore

if TYPE_CHECKING:
    from concordant.core.chain import Chain

Row = dict[str, Any]
_PLUMBING = ("id", "task", "group", "episode", "mask", "segment", "turn", "keep", "logp", "ref_logp")


def read_config(run: Path) -> dict[str, Any]:
    """Read a run folder's configuration."""
    path = run / "config.json"
    if not path.exists():
        raise DataError(
            f"{run} is not a run folder: it has no config.json; give one like runs/gdpo/gdpo/seed0"
        )
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON (line {error.lineno}: {error.msg})") from None


def read_rows(run: Path) -> list[Row]:
    """Read all stored rollouts of a run, finished or not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    joined = run / "rollouts.parquet"
    files = [joined] if joined.exists() else sorted((run / "rollouts").glob("*.parquet"))
    if not files:
        raise DataError(f"{run} has no stored rollouts; run with --set train.log_rollouts=64")
    try:
        return [row for file in files for row in pq.read_table(file).to_pylist()]
    except pa.ArrowException as error:
        raise DataError(
            f"{run}: the stored rollouts cannot be read ({error}); run again with --fresh"
        ) from None


def rows_of_step(run: Path, step: int | None = None) -> list[Row]:
    """Return the stored rollouts of one step, of the last one if none is named."""
    rows = read_rows(run)
    steps = sorted({row["step"] for row in rows})
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise DataError(f"{run} has no stored rollouts of step {chosen}; there are {steps[0]} to {steps[-1]}")
    return [row for row in rows if row["step"] == chosen]


def explained(run: Path, rollout: int, step: int | None = None) -> dict[str, Any]:
    """Explain one stored rollout's credit.

    Args:
        run: run folder.
        rollout: position among the stored rollouts of the step, from 0.
        step: training step; the last stored one if None.

    Returns:
        `{"slug", "arm", "seed", "rollout": {...}, "steps": [{"stage", "kernel", "summary", "inputs", "value"}]}`.
    """
    from concordant.core.edits import explain
    from concordant.loops.records import as_table

    config = read_config(run)
    rows = rows_of_step(run, step)
    if not 0 <= rollout < len(rows):
        raise DataError(f"rollout {rollout} is not stored; step {rows[0]['step']} has 0 to {len(rows) - 1}")
    row = rows[rollout]
    steps = explain(chain_of(config), as_table(rows), rollout)
    return {
        "slug": config["slug"],
        "arm": config["arm_name"],
        "seed": config["seed"],
        "rollout": {
            "index": rollout,
            "id": row["id"],
            "step": row["step"],
            "group": row["group"],
            "prompt": _field(row, "prompt"),
            "completion": _field(row, "completion"),
            **({"image": _field(row, "image")} if row.get("field.image") else {}),
        },
        "steps": [asdict(each) for each in steps],
    }


def chain_of(config: dict[str, Any]) -> "Chain":
    """Build the chain of a run from its configuration: kernels by name, from the library or from the recipe's arms."""
    from concordant import kernels, recipes
    from concordant.core.chain import chain, keep, stage

    known = {
        kernel_name(each.kernel): each.kernel
        for arm in recipes.get(config["slug"]).arms.values()
        for each in arm.chain.stages.values()
    }
    stages = {}
    for name, data in config["arm"]["chain"].items():
        kernel = getattr(kernels, data["kernel"], None) or known.get(data["kernel"])
        if kernel is None:
            raise DataError(
                f"the run used a kernel {data['kernel']!r} that this version does not have; run it again"
            )
        reads = {k: tuple(v) if isinstance(v, list) else v for k, v in data["reads"].items()}
        stages[name] = (keep if data["keeps"] else stage)(kernel, **data["options"], **reads)
    return chain(**stages)


def samples(run: Path, count: int = 2) -> list[dict[str, Any]]:
    """Return a few rollouts of the last stored step: those with the most and the least credit, with their numbers."""
    try:
        rows = rows_of_step(run)
        shown = _credit_columns(read_config(run))
    except DataError:
        return []
    ranked = sorted(rows, key=_credit, reverse=True)
    chosen = ranked if len(ranked) <= count else [*ranked[: -(-count // 2)], *ranked[-(count // 2) :]]
    return [
        {
            "step": row["step"],
            "prompt": _field(row, "prompt"),
            "completion": _field(row, "completion"),
            "image": field_image(row.get("field.image")),
            "numbers": [(name, values) for name in shown if (values := _numbers(row, name))],
        }
        for row in chosen
    ]


def _credit_columns(config: dict[str, Any]) -> list[str]:
    """Return the columns that a chain reads and makes, in order."""
    names: dict[str, None] = {}
    for stage, data in config.get("arm", {}).get("chain", {}).items():
        for columns in data["reads"].values():
            names.update(dict.fromkeys([columns] if isinstance(columns, str) else columns))
        names[stage] = None
    return [name for name in names if name not in _PLUMBING]


def _field(row: Row, name: str) -> str:
    """Return a text field; chat messages are joined, arrays described."""
    value = restore(json.loads(row.get(f"field.{name}") or '""'))
    if is_array(value):
        return describe(value)
    if isinstance(value, list):
        return "\n".join(f"{message['role']}: {message['content']}" for message in value)
    return str(value)


def _credit(row: Row) -> float:
    values = _numbers(row, "advantage")
    return values[0] if values and not math.isnan(values[0]) else 0.0


def _numbers(row: Row, name: str) -> list[float]:
    """Return a column's numbers for a row: one, or one for each stacked signal; over steps and segments the mean."""
    value = row.get(name)
    if isinstance(value, float | bool):
        return [float(value)]
    if not isinstance(value, list) or not value or not isinstance(value[0], float):
        return []
    axes = json.loads(row["axes"]).get(name, "").split()
    if "k" in axes:
        return [float(each) for each in value]
    inside = row.get("mask") if "s" in axes else None
    kept = [
        v for v, use in zip(value, inside or [True] * len(value), strict=True) if use and not math.isnan(v)
    ]
    return [sum(kept) / len(kept)] if kept else [math.nan]
