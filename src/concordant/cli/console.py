"""Printing: tables and progress for people, JSON for programs, nothing superfluous when no terminal is there."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

JSON_HELP = "Print JSON and nothing else on standard output."
UNSAFE_HELP = "Let code rewards run programs without a sandbox, on the bare host; each record says so."
COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow", "unjudged": "dim"}
SIGNS = {"supported": "✔", "refuted": "✘", "inconclusive": "?", "unjudged": "·"}


def console(stderr: bool = False) -> "Console":
    """Return a console; without a terminal it is wide, so that tables stay whole in logs and pipes."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160, soft_wrap=False, highlight=False)


def emit(data: Any) -> None:
    """Print data as JSON."""
    from concordant.comparison.results import tidy

    sys.stdout.write(json.dumps(tidy(data), indent=1, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Print a line of plain text on standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Print a remark on standard error."""
    sys.stderr.write(text + "\n")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()
) -> Any:
    """Return a rich table under its title; columns named in `right` are numbers."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return Group(Text(f"\n{title}", style="bold"), made) if title else made


def coloured(word: str, text: str | None = None) -> Any:
    """Return a verdict with its sign and colour."""
    from rich.text import Text

    return Text(text or f"{SIGNS.get(word, '')} {word}".strip(), style=COLOURS.get(word, ""))


def progress() -> "Progress":
    """Return a progress display on standard error; silent without a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    shown = console(stderr=True)
    count = TextColumn("{task.completed:.0f}/{task.total:.0f} steps")
    parts = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*parts, console=shown, disable=not sys.stderr.isatty(), transient=True)
