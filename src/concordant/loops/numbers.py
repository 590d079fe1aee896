"""Numbers that a run reports about its tables."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from concordant.core.table import Table


def table_numbers(table: Table, rewards: Sequence[str], objective: Any) -> dict[str, Any]:
    """Numbers of a table worth a line: mean of each reward, missing shares, rows that train."""
    log: dict[str, Any] = {"rollouts": float(table.rows), "kept": float(table["keep"].float().mean())}
    for name in rewards:
        values = table[name]
        log[f"reward/{name}"] = float(values.nanmean())
        log[f"missing/{name}"] = float(values.isnan().float().mean())
    reasons = Counter(
        f"{name}: {why}" for row in table.fields.get("missing", []) for name, why in row.items()
    )
    if reasons:
        log["missing_reasons"] = dict(reasons.most_common(5))
    return log | objective.numbers(table)
