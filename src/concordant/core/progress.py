"""Progress bars, for people at a terminal only."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def track(title: str, total: int, enabled: bool) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Yield `bar(done, numbers)`; it draws on stderr if enabled and stderr is a terminal, else it does nothing."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda done, numbers: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=total, numbers="")

        def show(done: int, numbers: Mapping[str, Any]) -> None:
            shown = {k.removeprefix("reward/"): v for k, v in numbers.items() if k.startswith("reward/")}
            progress.update(bar, completed=done, numbers=" ".join(f"{k} {v:.2f}" for k, v in shown.items()))

        yield show
