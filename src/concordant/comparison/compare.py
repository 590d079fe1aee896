"""One method against its baseline and controls: every arm on the same seeds and budget, then the verdict."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concordant.comparison.differences import all_changes
from concordant.comparison.jobs import Job, Outcome, Status, read_summary, run_all
from concordant.comparison.results import Result, assemble, read_json, read_result, tidy, write_json
from concordant.comparison.revision import revision
from concordant.core.errors import ConcordantError, ConfigError, nearest

if TYPE_CHECKING:
    from concordant.core.recipe import Recipe

SEEDS: dict[str, tuple[int, ...]] = {"smoke": (0,), "quick": (0, 1, 2), "full": (0, 1, 2, 3, 4)}
ORIGIN = "origin.json"

Watch = Callable[[Job, Status], None]


@dataclass(frozen=True)
class Plan:
    """What a comparison runs."""

    recipe: "Recipe"
    profile: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    sets: tuple[str, ...] = ()
    fresh: bool = False

    @property
    def whole(self) -> bool:
        """Whether this is the set of arms and seeds that the profile asks for, without changed settings."""
        arms, seeds = self.recipe.arms_of(self.profile), SEEDS[self.profile]
        return set(arms) <= set(self.arms) and set(seeds) <= set(self.seeds) and not self.sets

    @property
    def folder(self) -> Path:
        """Where the runs of this recipe lie."""
        return self.out / self.recipe.slug

    def jobs(self) -> list[Job]:
        """Return the runs, seed by seed, so that an interrupted comparison has whole pairs."""
        extra = tuple(word for item in self.sets for word in ("--set", item))
        slug = self.recipe.slug
        return [
            Job(slug, arm, s, self.profile, self.out, extra, self.fresh)
            for s in self.seeds
            for arm in self.arms
        ]


def make_plan(
    slug: str,
    *,
    profile: str = "quick",
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path | str = "runs",
    sets: Sequence[str] = (),
    fresh: bool = False,
) -> Plan:
    """Check a request and fill in what the profile says."""
    from concordant import recipes

    recipe = recipes.get(slug)
    if profile not in SEEDS:
        raise ConfigError(f"unknown profile {profile!r}; {nearest(profile, SEEDS)}")
    for arm in arms:
        recipe.arm(arm)
    chosen = tuple(dict.fromkeys(arms)) or recipe.arms_of(profile)
    return Plan(recipe, profile, chosen, tuple(seeds) or SEEDS[profile], Path(out), tuple(sets), fresh)


def compare(
    slug: str,
    *,
    profile: str = "quick",
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 2,
    out: Path | str = "runs",
    results: Path | str = "results",
    sets: Sequence[str] = (),
    fresh: bool = False,
    watch: Watch | None = None,
) -> Result:
    """Run every arm on every seed and return the result, as `concordant compare --json` prints it.

    Args:
        slug: the recipe.
        profile: `smoke`, `quick` or `full`.
        arms: a choice of arms; empty means those of the profile.
        seeds: a choice of seeds; empty means those of the profile.
        jobs: processes at a time, one thread each.
        out: where runs go; finished runs with the same configuration and code are used again.
        results: where the result goes if the whole set of arms and seeds ran; others stay with the runs.
        sets: dotted overrides such as `chain.z.eps=1e-6`, for all arms.
        fresh: run everything again.
        watch: told about each run's progress.
    """
    plan = make_plan(slug, profile=profile, arms=arms, seeds=seeds, out=out, sets=sets, fresh=fresh)
    return finish(plan, measure(plan, jobs, watch), Path(results))


def measure(plan: Plan, workers: int = 2, watch: Watch | None = None) -> list[Outcome]:
    """Run what is not there yet."""
    code = revision(plan.recipe)
    jobs = plan.jobs()
    configs = {
        job: expected_config(job, plan.sets) for job in jobs
    }  # a wrong --set fails here, before anything runs
    kept: dict[Job, Outcome] = {}
    todo: dict[Job, Job] = {}
    for job in jobs:
        summary = None if plan.fresh else read_summary(job.folder)
        same = is_same_run(job.folder, configs[job], code)
        if summary is not None and same:
            kept[job] = Outcome(job, "reused", summary)
            if watch:
                watch(job, "reused")
        else:
            todo[job] = job if same else _afresh(job)
    ran = dict(zip(todo, run_all(list(todo.values()), workers, watch), strict=True))
    return [kept.get(job) or ran[job] for job in jobs]


def _afresh(job: Job) -> Job:
    return Job(job.slug, job.arm, job.seed, job.profile, job.out, job.arguments, fresh=True)


def expected_config(job: Job, sets: Sequence[str]) -> dict[str, Any]:
    """Return the resolved configuration that a job's run folder will show."""
    from concordant.core.config import plain
    from concordant.experiment import build

    experiment = build(job.slug, arm=job.arm, profile=job.profile, seed=job.seed, sets=tuple(sets))
    return dict(tidy(plain(experiment)))


def is_same_run(folder: Path, config: dict[str, Any], code: str) -> bool:
    """Whether a run folder was made with this configuration and this code."""
    origin = read_json(folder / ORIGIN)
    return bool(read_json(folder / "config.json") == config and origin and origin.get("revision") == code)


def finish(plan: Plan, outcomes: Sequence[Outcome], results: Path) -> Result:
    """Assemble the result and write it: always beside the runs, and to `results` if it is a whole measurement."""
    result = assemble(
        plan.recipe,
        plan.profile,
        outcomes,
        revision=revision(plan.recipe),
        command=_command(plan),
        differences=all_changes(plan.recipe),
        settings={job.arm: read_json(job.folder / "config.json") for job in plan.jobs()},
    )
    path = plan.folder / "result.json"
    try:
        write_json(path, result)
        if (
            plan.whole
            and plan.profile != "smoke"
            and not result["failures"]
            and _may_replace(results, result)
        ):
            write_json(results / f"{result['slug']}.json", result)
    except OSError as error:
        raise ConcordantError(
            f"cannot write the result: {error}; choose another --out or --results"
        ) from None
    return result


def _may_replace(results: Path, result: Result) -> bool:
    """A quick result does not replace a full one of the same code."""
    path = results / f"{result['slug']}.json"
    if result["profile"] == "full" or not path.exists():
        return True
    before = read_result(path)
    return bool(before["profile"] != "full" or before.get("revision") != result["revision"])


def _command(plan: Plan) -> str:
    words = ["concordant", "compare", plan.recipe.slug, "--profile", plan.profile]
    words += ["--seeds", ",".join(map(str, plan.seeds)), "--arms", ",".join(plan.arms)]
    words += [word for item in plan.sets for word in ("--set", item)]
    return shlex.join(words)
