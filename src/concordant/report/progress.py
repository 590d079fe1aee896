"""A progress bar for one training run; silent unless asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def track(label: str, total: int, shown: bool) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Yield a function that takes the step reached and its log line.

    Args:
        label: what is running.
        total: number of steps.
        shown: False yields a function that does nothing.
    """
    if not shown:
        yield lambda step, line: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    last = TextColumn("{task.fields[rewards]}", style="dim")
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), last, console=Console(stderr=True)
    ) as bars:
        task = bars.add_task(label, total=total, rewards="")

        def bar(step: int, line: Mapping[str, Any]) -> None:
            rewards = {k.removeprefix("reward/"): v for k, v in line.items() if k.startswith("reward/")}
            bars.update(task, completed=step, rewards=" ".join(f"{k} {v:.2f}" for k, v in rewards.items()))

        yield bar
