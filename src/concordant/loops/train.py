"""The training loop: build a run or take it up where it stopped, bring it to the end of its budget, sum it up."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from concordant.core.progress import track
from concordant.core.recipe import Experiment
from concordant.core.versions import versions
from concordant.loops import checkpoint
from concordant.loops.folder import prepare_folder, resolved
from concordant.loops.ranks import Ranks
from concordant.loops.run import Run
from concordant.worlds.build import make_policy, make_world


def train(
    experiment: Experiment, folder: Path, *, fresh: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Run an experiment to the end of its budget, resuming from the newest checkpoint in `folder`; return the summary.

    A finished run is returned as it is. Killing the process at any point and calling again gives the same bits.
    """
    ranks = Ranks.current(experiment.policy.device)
    if ranks.first:
        prepare_folder(folder, experiment, fresh)
    ranks.wait()
    summary_file = folder / "summary.json"
    if summary_file.exists():
        return dict(json.loads(summary_file.read_text()))
    world = make_world(experiment)
    run = Run(experiment, folder, world, make_policy(experiment, world), ranks)
    try:
        return _go_on(run, progress and ranks.first)
    finally:
        run.scorer.close()


def _go_on(run: Run, progress: bool) -> dict[str, Any]:
    """Take a run up where it stopped, and finish it."""
    experiment, folder = run.experiment, run.folder
    saved = checkpoint.checkpoints(folder / "state")
    if saved:
        run.load(*checkpoint.load(saved[-1]))
    if run.ranks.first:
        run.records.rewind(run.step)
    if not saved:
        run.measure_start()
        run.save()
    with track(
        f"{experiment.slug} {experiment.arm_name} seed {experiment.seed}", run.config.steps, progress
    ) as bar:
        bar(run.step, {})
        while not run.done:
            bar(run.step, run.advance())
    return finish(run)


def finish(run: Run) -> dict[str, Any]:
    """Evaluate with more samples, write the summary last, so that its presence means the run is complete."""
    if not run.ranks.first:
        run.ranks.wait()
        return dict(json.loads((run.folder / "summary.json").read_text()))
    metrics = run.evaluate(run.config.final_samples)
    run.curve.pop()
    run.records.finish()
    experiment = run.experiment
    if experiment.policy.model:
        run.policy.save_pretrained(run.folder / "policy")
    summary = {
        "slug": experiment.slug,
        "arm": experiment.arm_name,
        "seed": experiment.seed,
        "profile": experiment.profile,
        "metrics": metrics,
        "failure_meters": run.meters,
        "curve": run.curve,
        "cost": {**asdict(run.cost), "updates": run.updates, "steps": run.step},
        "wall_seconds": round(run.seconds, 2),
        "versions": versions(),
        "config": hashlib.blake2b(json.dumps(resolved(experiment)).encode(), digest_size=8).hexdigest(),
    }
    checkpoint.write_atomically(run.folder / "summary.json", json.dumps(summary, indent=1).encode())
    run.ranks.wait()
    return summary
