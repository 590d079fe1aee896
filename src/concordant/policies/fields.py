"""What tasks hand on to their rows."""

from collections.abc import Sequence
from typing import Any

from concordant.core.errors import DataError


def task_fields(tasks: Sequence[Any], order: Sequence[int], own: Sequence[str]) -> dict[str, list[Any]]:
    """The fields of tasks, one entry for each row.

    Args:
        tasks: objects with `fields`; all must have the same names.
        order: task of each row.
        own: names that the policy writes itself; no task may have them.
    """
    names = list(tasks[0].fields)
    for index, task in enumerate(tasks):
        if set(task.fields) != set(names):
            raise DataError(
                f"task {index} has fields {sorted(task.fields)}, the first one {sorted(names)}; make them equal"
            )
    taken = [name for name in own if name in names]
    if taken:
        raise DataError(
            f"tasks must not have a field named {taken[0]!r}: the policy writes it; rename the task's field"
        )
    return {name: [tasks[i].fields[name] for i in order] for name in names}
