"""The result of a comparison as plain data: assembled from runs, written atomically, read back, shown in tables."""

import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from concordant.comparison.jobs import Outcome
from concordant.comparison.verdict import REFUTED, judge
from concordant.core.errors import DataError

if TYPE_CHECKING:
    from concordant.core.recipe import Recipe

Result = dict[str, Any]


def assemble(recipe: "Recipe", profile: str, outcomes: Sequence[Outcome], **extra: Any) -> Result:
    """Return the result of a comparison.

    Args:
        recipe: what was compared.
        profile: budget of the runs.
        outcomes: one for each arm and seed.
        extra: further entries, written as they are (`revision`, `settings`, ...).

    Returns:
        The dictionary that `compare --json` prints. Lists under an arm follow `seeds`; a run that failed is null.
        `wall_seconds` is the sum over runs, each on one thread.
    """
    arms = list(dict.fromkeys(outcome.job.arm for outcome in outcomes))
    seeds = sorted({outcome.job.seed for outcome in outcomes})
    runs = {(outcome.job.arm, outcome.job.seed): outcome.summary or {} for outcome in outcomes}
    by_arm = {arm: [runs.get((arm, seed), {}) for seed in seeds] for arm in arms}
    metrics = {arm: _columns(summaries, "metrics") for arm, summaries in by_arm.items()}
    method = recipe.slug if recipe.slug in by_arm else arms[0]
    meters = _means(_columns(by_arm[method], "failure_meters"))
    result = {
        "slug": recipe.slug,
        "title": recipe.title,
        "world": recipe.world,
        "profile": profile,
        "seeds": seeds,
        "arms": metrics,
        "claims": [judge(claim, recipe.slug, metrics, meters, profile).as_json() for claim in recipe.claims],
        "failure_meters": meters,
        "failures": _failures(outcomes),
        **_circumstances([summary for summary in runs.values() if summary]),
        "baseline": recipe.baseline,
        "controls": list(recipe.controls),
        "cost": {arm: _means(_columns(_costs(summaries), "cost")) for arm, summaries in by_arm.items()},
        "curves": {
            arm: [summary.get("curve", []) for summary in summaries] for arm, summaries in by_arm.items()
        },
        **extra,
    }
    return dict(tidy(result))


def _failures(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    return [{"arm": each.job.arm, "seed": each.job.seed, "error": each.error} for each in failed]


def _circumstances(finished: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how long it took, with what, where and when."""
    return {
        "wall_seconds": round(sum(float(summary.get("wall_seconds", 0.0)) for summary in finished), 1),
        "versions": finished[0].get("versions", {}) if finished else {},
        "machine": machine(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _columns(summaries: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float | None]]:
    """Turn one dictionary of numbers a seed into one list a name."""
    names = dict.fromkeys(name for summary in summaries for name in summary.get(key, {}))
    return {name: [_number(summary.get(key, {}).get(name)) for summary in summaries] for name in names}


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if usable else None


def _costs(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The costs of runs, with the seconds that each took."""
    return [
        {"cost": {**summary.get("cost", {}), "wall_seconds": summary.get("wall_seconds")}}
        for summary in summaries
    ]


BUDGET = {
    "rollouts": "rollouts",
    "tokens": "tokens",
    "evaluations": "network evaluations",
    "reward_calls": "reward calls",
    "updates": "optimiser updates",
    "wall_seconds": "seconds",
}
"""What an arm may cost, and what it is called."""


def budget(result: Mapping[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """Return what a run of each arm cost, mean over seeds: names of the columns, and their cells by arm.

    What no arm spent (a language model's network evaluations, a generator's tokens) has no column.
    """
    cost = {arm: result.get("cost", {}).get(arm) or {} for arm in result["arms"]}
    spent = {key: [own.get(key) or 0 for own in cost.values()] for key in BUDGET}
    spent = {key: values for key, values in spent.items() if any(values)}
    digits = {
        key: int(min(values) < 10 and any(value != round(value) for value in values))
        for key, values in spent.items()
    }
    cells = {
        arm: [f"{values[place]:,.{digits[key]}f}" for key, values in spent.items()]
        for place, arm in enumerate(cost)
    }
    return [BUDGET[key] for key in spent], cells


def _means(columns: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    measured = {name: [v for v in values if v is not None] for name, values in columns.items()}
    return {name: fmean(values) for name, values in measured.items() if values}


def mean_sd(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Return mean and standard deviation (n - 1; 0 for one value) of what was measured."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return fmean(measured), stdev(measured) if len(measured) > 1 else 0.0


def tidy(value: Any) -> Any:
    """Return data that JSON can hold: no NaN or infinity (null instead), lists instead of tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): tidy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(inner) for inner in value]
    return value


def machine() -> dict[str, Any]:
    """Say on what kind of machine this runs."""
    name = f"{platform.system()} {platform.machine()}"
    return {"platform": name, "python": platform.python_version(), "cores": os.cpu_count()}


def write_json(path: Path, data: Any) -> Path:
    """Write JSON so that the file is either the old one or the new one, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; None if there is none or it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def read_result(path: Path) -> Result:
    """Read a result file; say what is wrong with one that is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}); run the comparison again"
        ) from None
    lacking = [key for key in ("slug", "profile", "seeds", "arms", "claims") if key not in result]
    if lacking:
        raise DataError(f"{path} is not a result of `concordant compare`: it has no {lacking[0]!r}")
    return dict(result)


def verdicts(result: Mapping[str, Any]) -> dict[str, int]:
    """Count the verdicts of a result's claims."""
    names = [claim["verdict"] for claim in result["claims"]]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def exit_code(result: Mapping[str, Any]) -> int:
    """Return 1 if a claim was refuted or a run failed, else 0."""
    return int(bool(result.get("failures")) or any(claim["verdict"] == REFUTED for claim in result["claims"]))


def metric_names(result: Mapping[str, Any], most: int = 6) -> list[str]:
    """Return the metrics to show: those of the claims first, then the others, at most `most`."""
    claimed = [claim["metric"] for claim in result["claims"]]
    measured = [name for metrics in result["arms"].values() for name in metrics]
    return [name for name in dict.fromkeys([*claimed, *measured]) if name in measured][:most]
