"""`concordant compare`: a method against its baseline and controls, with a verdict."""

import time
from pathlib import Path
from typing import Any

import typer

from concordant.cli.console import JSON_HELP, coloured, console, emit, note, progress, table


def verb(
    slug: str = typer.Argument(help="Recipe, e.g. gdpo."),
    profile: str = typer.Option(
        "quick", help="Budget: smoke (seconds, no verdict), quick (minutes) or full."
    ),
    seeds: str = typer.Option("", help="Seeds, e.g. 0-2 or 0,3,5; the profile's own if left out."),
    arms: str = typer.Option("", help="Arms, separated by commas; the profile's own if left out."),
    jobs: int = typer.Option(2, help="Processes at a time, one thread each.", min=1),
    out: Path = typer.Option(Path("runs"), help="Folder of runs; finished ones are used again."),
    results: Path = typer.Option(
        Path("results"), help="Where the result of a whole quick or full comparison goes."
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Override in all arms. Repeatable."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Run everything again."),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Run all arms on the same seeds and budget; print the table, an interval and a verdict for each claim."""
    from concordant.comparison.compare import finish, make_plan
    from concordant.comparison.jobs import parse_seeds
    from concordant.comparison.results import exit_code
    from concordant.report.page import write_report

    started = time.monotonic()
    chosen = tuple(name.strip() for name in arms.split(",") if name.strip())
    numbers = parse_seeds(seeds) if seeds else ()
    plan = make_plan(
        slug, profile=profile, seeds=numbers, arms=chosen, out=out, sets=tuple(set_), fresh=fresh
    )
    outcomes = measured(plan, jobs)
    result = finish(plan, outcomes, results)
    page = write_report(result, plan.folder) if any(outcome.summary for outcome in outcomes) else None
    emit(result) if json else show(result)
    for failure in result["failures"]:
        note(f"\nfailed: {failure['arm']} seed {failure['seed']}: {failure['error']}")
    if not json:
        _end(time.monotonic() - started, outcomes, page)
    raise typer.Exit(exit_code(result))


def _end(seconds: float, outcomes: Any, page: Path | None) -> None:
    """Say how long it took, what was there already, and where the report lies."""
    reused = sum(outcome.status == "reused" for outcome in outcomes)
    again = f", {reused} of {len(outcomes)} runs were there already" if reused else ""
    console().print(
        f"{seconds:.0f} s{again}." + (f" Report: {page}" if page else ""), soft_wrap=True, markup=False
    )


def measured(plan: Any, jobs: int) -> Any:
    """Run a plan under progress bars: one for the whole, in steps, and one for each running process."""
    from concordant.comparison.compare import measure
    from concordant.comparison.jobs import steps_done
    from concordant.core.recipe import train_config

    totals = {
        arm: train_config(plan.recipe, plan.profile, plan.recipe.arm(arm))[0].steps for arm in plan.arms
    }
    planned = plan.jobs()
    with progress() as bars:
        whole = bars.add_task("", total=sum(totals[job.arm] for job in planned))
        tasks: dict[str, Any] = {}
        steps: dict[str, int] = {}
        ended: set[str] = set()

        def watch(job: Any, status: str) -> None:
            total = totals[job.arm]
            if status == "running":
                steps[job.label] = min(steps_done(job.folder), total)
                if job.label not in tasks:
                    tasks[job.label] = bars.add_task(f"  {job.label}", total=total)
                bars.update(tasks[job.label], completed=steps[job.label])
            else:
                steps[job.label] = total
                ended.add(job.label)
                if job.label in tasks:
                    bars.remove_task(tasks.pop(job.label))
            text = f"{plan.recipe.slug}: {len(ended)} of {len(planned)} runs"
            bars.update(whole, completed=sum(steps.values()), description=text)

        return measure(plan, jobs, watch)


def show(result: dict[str, Any]) -> None:
    """Print a result's tables."""
    out = console()
    out.print(numbers(result))
    costs = cost_table(result)
    if costs is not None:
        out.print(costs)
    if result["claims"]:
        out.print(verdict_table(result))
    meters = ", ".join(f"{name} {value:.3g}" for name, value in result["failure_meters"].items())
    if meters:
        out.print(f"\nfailure meters at the start: {meters}", markup=False)


def numbers(result: dict[str, Any]) -> Any:
    """Return the table of arms and metrics: mean ± standard deviation over seeds."""
    from concordant.comparison.results import mean_sd, metric_names

    names = metric_names(result)
    several = len(result["seeds"]) > 1
    rows = []
    for arm, metrics in result["arms"].items():
        cells = [mean_sd(metrics.get(name, [])) for name in names]
        rows.append((arm, *(_cell(cell, several) for cell in cells)))
    seeds = ", ".join(map(str, result["seeds"])) + (" (mean ± sd)" if several else "")
    title = f"{result['slug']} on {result['world']}, profile {result['profile']}, seed{'s' * several} {seeds}"
    return table(title, ("arm", *names), rows, right=names)


def _cell(cell: tuple[float, float] | None, several: bool) -> str:
    if cell is None:
        return "failed"
    return f"{cell[0]:.3f} ± {cell[1]:.3f}" if several else f"{cell[0]:.3f}"


def cost_table(result: dict[str, Any]) -> Any:
    """Return the table of what each arm cost; None if no arm cost anything."""
    from concordant.comparison.results import budget

    names, cost = budget(result)
    if not names:
        return None
    rows = [(arm, *cells) for arm, cells in cost.items()]
    title = "cost of a run" + (" (mean over seeds)" if len(result["seeds"]) > 1 else "")
    return table(title, ("arm", *names), rows, right=names)


def verdict_table(result: dict[str, Any]) -> Any:
    """Return the table of claims."""
    from concordant.comparison.board import claim_text, effect_text

    rows = [
        (claim_text(claim), effect_text(claim), coloured(claim["verdict"]), claim["reason"])
        for claim in result["claims"]
    ]
    title = "claims: difference on the same seeds, 95 % paired t interval"
    return table(title, ("claim", "difference", "verdict", "why"), rows, right=("difference",))
