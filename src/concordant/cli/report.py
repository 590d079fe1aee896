"""`concordant report`: one self-contained HTML file."""

from pathlib import Path

import typer

from concordant.cli.console import JSON_HELP, emit, say


def verb(
    source: Path = typer.Argument(help="Result file, folder of a recipe's runs, or a single run folder."),
    out: Path | None = typer.Option(None, help="HTML file; beside the source if left out."),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Write a report of a comparison or of a single run: verdicts, numbers, curves, what differs, sample rollouts."""
    from concordant.report.page import report_of

    page = report_of(source, out)
    emit({"report": str(page)}) if json else say(str(page))
