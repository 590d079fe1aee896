"""The HTML page of a comparison or of one run: one file, no network, readable in two minutes and in print."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from concordant.comparison.board import claim_text
from concordant.comparison.differences import sentence
from concordant.comparison.jobs import read_summary
from concordant.comparison.results import Result, budget, mean_sd, metric_names, read_result
from concordant.core.errors import ConcordantError, DataError
from concordant.report.against import proxies, proxy_and_gold
from concordant.report.figures import curves, forest, look, save_png, svg
from concordant.report.pictures import first_run, grids
from concordant.report.rollouts import read_config, samples


def write_report(result: Result, folder: Path, out: Path | None = None) -> Path:
    """Write the report of a comparison and its curves as PNG; return the report's path.

    Args:
        result: as `compare --json` prints it.
        folder: the recipe's folder of runs; sample rollouts are read from there.
        out: the HTML file; `folder/report.html` if left out.
    """
    path = out or folder / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            save_png(curves(result), folder / "curves.png")
        path.write_text(page(result, folder), encoding="utf-8")
    except OSError as error:
        raise ConcordantError(f"cannot write the report: {error}; choose another --out") from None
    return path.resolve()


def report_of(source: Path, out: Path | None = None) -> Path:
    """Write the report of a result file, of a recipe's folder of runs, or of a single run folder."""
    if not source.exists():
        raise DataError(f"{source} does not exist; give a result file, runs/SLUG or runs/SLUG/ARM/seedK")
    if (source / "config.json").exists():
        return write_report(single(source), source, out)
    path = source / "result.json" if source.is_dir() else source
    if not path.exists():
        raise DataError(f"{source} holds neither a run (config.json) nor a comparison (result.json)")
    result = read_result(path)
    folder = path.parent if path.name == "result.json" else Path("runs") / result["slug"]
    beside = "report.html" if source.is_dir() else f"{path.stem}.html"
    return write_report(result, folder, out or path.with_name(beside))


def single(folder: Path) -> Result:
    """Return a single run as a result with one arm, one seed and no claims."""
    summary = read_summary(folder)
    if summary is None:
        raise DataError(f"{folder} has no summary.json: the run is not finished; resume it first")
    arm, config = summary["arm"], read_config(folder)
    return {
        "slug": summary["slug"],
        "title": f"{summary['slug']}, arm {arm}, seed {summary['seed']}",
        "world": config.get("world", ""),
        "profile": summary["profile"],
        "seeds": [summary["seed"]],
        "arms": {arm: {name: [value] for name, value in summary["metrics"].items()}},
        "claims": [],
        "failure_meters": summary.get("failure_meters", {}),
        "failures": [],
        "wall_seconds": summary.get("wall_seconds"),
        "versions": summary.get("versions", {}),
        "cost": {arm: {**summary.get("cost", {}), "wall_seconds": summary.get("wall_seconds")}},
        "curves": {arm: [summary.get("curve", [])]},
        "settings": {arm: config},
        "folders": {arm: str(folder)},
    }


def page(result: Result, folder: Path) -> str:
    """Return the page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("concordant.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment.get_template("page.html.j2").render(
        result=result,
        looks=look(list(result["arms"])),
        forest=svg(forest(result)),
        curves=svg(curves(result)),
        against=svg(proxy_and_gold(result)),
        trained=proxies(result)[1],
        grids=grids(result, folder),
        budget=dict(zip(("names", "arms"), budget(result), strict=True)),
        metrics=metric_names(result),
        more=metric_names(result, most=100)[len(metric_names(result)) :],
        cells=_cells(result),
        claims=[
            {**claim, "text": claim_text(claim), "sentence": _sentence(claim)} for claim in result["claims"]
        ],
        meters=_meters(result),
        differences=_differences(result),
        rollouts=_samples(result, folder),
        settings=_settings(result),
        facts=_facts(result),
    )


def _number(value: Any, digits: int | None = None) -> str:
    """Return a number in a width that suits its size: 0.712, 32.3, 1,024."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "missing"
    size = abs(value)
    wanted = digits if digits is not None else 3 if size < 10 else 1 if size < 1000 else 0
    return f"{value:,.{wanted}f}"


def _sentence(claim: Mapping[str, Any]) -> str:
    metric = claim["metric"].replace("_", " ")
    return f"{metric[:1].upper()}{metric[1:]}: {claim['direction']} with {claim['arm']} than with {claim['versus']}"


def _cells(result: Result) -> dict[str, dict[str, Any]]:
    """Return for each arm and metric: mean, standard deviation, and the seeds."""
    made: dict[str, dict[str, Any]] = {}
    for arm, metrics in result["arms"].items():
        made[arm] = {}
        for name in metric_names(result, most=100):
            values = metrics.get(name, [])
            summary = mean_sd(values)
            shown = " ".join(map(_number, values))
            made[arm][name] = summary and {"mean": summary[0], "sd": summary[1], "seeds": shown}
    return made


def _meters(result: Result) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in result["failure_meters"].items()]


def _differences(result: Result) -> list[dict[str, Any]]:
    """Return, for the arms that ran, what each changes against the method."""
    arms = result.get("differences", {})
    return [
        {"arm": arm, "changes": [sentence(change) for change in arms[arm]]}
        for arm in result["arms"]
        if arm in arms and arm != result["slug"]
    ]


def _samples(result: Result, folder: Path) -> list[dict[str, Any]]:
    """Return a few rollouts of the method and of its baseline, from the first seed's last stored step."""
    wanted = [str(arm) for arm in (result["slug"], result.get("baseline")) if arm in result["arms"]]
    found = []
    for arm in wanted or list(result["arms"])[:1]:
        found.append({"arm": arm, "rows": samples(first_run(result, folder, arm))})
    return [each for each in found if each["rows"]]


def _settings(result: Result) -> list[dict[str, Any]]:
    """Return the resolved configuration of each arm as indented JSON."""
    return [
        {"arm": arm, "text": json.dumps(config, indent=1, ensure_ascii=False)}
        for arm, config in result.get("settings", {}).items()
        if config
    ]


def _facts(result: Result) -> list[tuple[str, str]]:
    """Return what a reader needs to repeat the measurement."""
    facts = {
        "command": result.get("command"),
        "measured": result.get("measured"),
        "computing time": f"{result['wall_seconds'] / 60:.1f} minutes of one core"
        if result.get("wall_seconds")
        else None,
        "code revision": result.get("revision"),
        "machine": ", ".join(f"{k} {v}" for k, v in result.get("machine", {}).items()) or None,
        "versions": ", ".join(f"{k} {v}" for k, v in result.get("versions", {}).items()) or None,
    }
    return [(name, value) for name, value in facts.items() if value]
