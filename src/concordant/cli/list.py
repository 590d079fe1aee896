"""`concordant list`: the recipes."""

from pathlib import Path
from typing import Any

import typer

from concordant.cli.console import JSON_HELP, console, emit, table


def verb(
    kind: str = typer.Option("all", help="system, baseline or all."),
    results: Path = typer.Option(Path("results"), help="Folder of measured results."),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """List the recipes: what each is, on which world, against which baseline, and what was measured."""
    from concordant import recipes
    from concordant.core.errors import ConfigError, nearest

    if kind not in ("system", "baseline", "all"):
        raise ConfigError(f"unknown kind {kind!r}; {nearest(kind, ('system', 'baseline', 'all'))}")
    entries = [entry(recipes.get(slug), results) for slug in recipes.slugs()]
    entries = [each for each in entries if kind in ("all", each["kind"])]
    if json:
        emit(entries)
        return
    rows = [
        (
            each["slug"],
            each["kind"],
            each["world"],
            each["baseline"] or "–",
            " → ".join(each["stages"]),
            _measured(each["result"]),
        )
        for each in entries
    ]
    console().print(table("", ("recipe", "kind", "world", "against", "stages", "measured"), rows))
    console().print(
        f"{len(entries)} recipes. `concordant show NAME` tells what one does, `compare NAME` measures it."
    )


def entry(recipe: Any, results: Path) -> dict[str, Any]:
    """Return what `list --json` says about a recipe."""
    return {
        "slug": recipe.slug,
        "kind": recipe.kind,
        "title": recipe.title,
        "world": recipe.world,
        "stages": [*recipe.arm().chain.stages],
        "baseline": recipe.baseline if recipe.baseline in recipe.arms else None,
        "controls": [*recipe.controls],
        "result": _result(recipe, results),
    }


def _result(recipe: Any, results: Path) -> dict[str, Any] | None:
    from concordant.comparison.board import is_stale
    from concordant.comparison.results import read_result, verdicts

    path = results / f"{recipe.slug}.json"
    if not path.exists():
        return None
    result = read_result(path)
    return {
        "path": str(path),
        "profile": result["profile"],
        "seeds": len(result["seeds"]),
        "verdicts": verdicts(result),
        "stale": is_stale(recipe, result),
    }


def _measured(result: dict[str, Any] | None) -> str:
    if result is None:
        return "–"
    counts = ", ".join(f"{count} {verdict}" for verdict, count in result["verdicts"].items())
    return (
        f"{counts or 'no claims'} ({result['profile']}{', older than its code' if result['stale'] else ''})"
    )
