"""`concordant board`: all systems at a glance."""

from pathlib import Path
from typing import Any

import typer

from concordant.cli.console import JSON_HELP, coloured, console, emit, note, table


def verb(
    run: bool = typer.Option(False, "--run", help="Measure what is missing or older than its code; resumes."),
    profile: str = typer.Option("quick", help="Budget for --run: quick or full."),
    jobs: int = typer.Option(2, help="Processes at a time for --run.", min=1),
    out: Path = typer.Option(Path("runs"), help="Folder of runs."),
    results: Path = typer.Option(
        Path("results"), help="Folder of results; the table goes to RESULTS/board.md."
    ),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Show every system with its claims and verdicts, those without results and those older than their code."""
    from concordant import recipes
    from concordant.comparison.board import board_row, markdown
    from concordant.core.errors import ConfigError, nearest

    if profile not in ("quick", "full"):
        raise ConfigError(
            f"the board's profiles are quick and full, got {profile!r}; {nearest(profile, ('quick', 'full'))}"
        )
    systems = [recipe for recipe in map(recipes.get, recipes.slugs()) if recipe.kind == "system"]
    failed = (
        _measure(
            [r for r in systems if board_row(r, results).state != "current"], profile, jobs, out, results
        )
        if run
        else []
    )
    rows = [board_row(recipe, results) for recipe in systems]
    if results.exists():
        (results / "board.md").write_text(markdown(rows), encoding="utf-8")
    emit([row.as_json() for row in rows]) if json else console().print(_table(rows))
    refuted = any(claim["verdict"] == "refuted" for row in rows for claim in row.claims)
    raise typer.Exit(int(refuted or bool(failed)))


def _measure(systems: list[Any], profile: str, jobs: int, out: Path, results: Path) -> list[str]:
    """Compare systems one after the other; an error in one does not stop the others."""
    from concordant.cli.compare import measured
    from concordant.comparison.compare import finish, make_plan
    from concordant.core.errors import ConcordantError
    from concordant.report.page import write_report

    failed = []
    for number, recipe in enumerate(systems, 1):
        note(f"[{number}/{len(systems)}] {recipe.slug}")
        try:
            plan = make_plan(recipe.slug, profile=profile, out=out)
            result = finish(plan, measured(plan, jobs), results)
            write_report(result, plan.folder)
        except ConcordantError as error:
            note(f"{recipe.slug}: {error}")
            failed.append(recipe.slug)
            continue
        failed.extend(recipe.slug for _ in result["failures"][:1])
        for failure in result["failures"]:
            note(f"failed: {recipe.slug}, {failure['arm']} seed {failure['seed']}: {failure['error']}")
    return failed


def _table(rows: list[Any]) -> Any:
    from concordant.comparison.board import claim_text, effect_text

    lines = []
    for row in rows:
        setting = f"{row.profile}, {row.seeds} seeds" if row.profile else ""
        for i, claim in enumerate(row.claims or (None,)):
            cells = (
                (claim_text(claim), effect_text(claim), coloured(claim["verdict"])) if claim else ("", "", "")
            )
            lines.append(
                (row.slug if i == 0 else "", *cells, setting if i == 0 else "", row.state if i == 0 else "")
            )
    columns = ("system", "claim", "difference", "verdict", "profile", "state")
    return table("board", columns, lines, right=("difference",))
