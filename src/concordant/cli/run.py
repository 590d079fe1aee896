"""`concordant run`: one arm, one seed."""

from pathlib import Path
from typing import Any

import typer

from concordant.cli.console import JSON_HELP, UNSAFE_HELP, console, emit, note, table
from concordant.scoring.isolation import set_isolation


def verb(
    slug: str = typer.Argument(help="Recipe, e.g. gdpo."),
    arm: str = typer.Option("", help="Arm; the method itself if left out."),
    profile: str = typer.Option("quick", help="Budget: smoke, quick or full."),
    seed: int = typer.Option(0, help="Seed of everything random.", min=0),
    out: Path = typer.Option(Path("runs"), help="The run goes to OUT/SLUG/ARM/seedK."),
    set_: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Override, e.g. chain.z.eps=1e-6. Repeatable."
    ),
    model: str = typer.Option(
        "", help="Your own model: causal language model (folder or hub id), or diffusers pipeline (folder)."
    ),
    data: Path | None = typer.Option(
        None, help="Your own prompts: JSONL, one object with a `prompt` a line."
    ),
    reward: list[str] = typer.Option(
        [], metavar="FILE.py:NAME", help="Your own reward function. Repeatable."
    ),
    unsafe_no_sandbox: bool = typer.Option(False, "--unsafe-no-sandbox", help=UNSAFE_HELP),
    fresh: bool = typer.Option(
        False, "--fresh/--resume", help="Start anew, or go on from the last checkpoint."
    ),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Train one arm on one seed; leaves configuration, metrics, rollouts and a checkpoint in the run folder."""
    prepare_process(own_model=bool(model))
    if unsafe_no_sandbox:
        set_isolation("none")
        note("programs that rewards execute run without a sandbox")
    from concordant import recipes
    from concordant.experiment import build

    _check_own({"--model": model, "--data": data, "--reward": reward})
    own: dict[str, Any] = {"model": model or None, "data": data, "rewards": tuple(reward)}
    experiment = build(slug, arm=arm or None, profile=profile, seed=seed, sets=tuple(set_), **own)
    folder = out / experiment.folder
    summary = execute(recipes.get(slug), experiment, folder, fresh)
    if is_first():
        emit(summary) if json else _print(summary, folder)


def _check_own(given: dict[str, Any]) -> None:
    """Refuse a model without data or rewards, and so on."""
    from concordant.core.errors import ConfigError

    lacking = [name for name, value in given.items() if not value]
    if 0 < len(lacking) < len(given):
        raise ConfigError(f"your own model, data and rewards go together; {', '.join(lacking)} is missing")


def prepare_process(own_model: bool) -> None:
    """Set what must be set before torch is imported.

    The shipped models are so small that a second thread costs more than it brings, and bits depend on the number of
    threads: one, unless the user's environment says otherwise. One's own model gets torch's default.
    """
    import os
    import sys

    if not own_model:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def execute(recipe: Any, experiment: Any, folder: Path, fresh: bool) -> dict[str, Any]:
    """Train, with the origin of the run written beside it.

    Of several processes that a launcher started (`torchrun`, `accelerate launch`), the first one keeps the folder.
    """
    import sys

    from concordant.comparison.compare import ORIGIN
    from concordant.comparison.results import read_json, write_json
    from concordant.comparison.revision import revision
    from concordant.core.errors import CheckpointError
    from concordant.loops.train import train

    if fresh and is_first():
        clear(folder)
    code = {"revision": revision(recipe)}
    try:
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "config.json").exists():
                write_json(folder / ORIGIN, code)
            elif read_json(folder / ORIGIN) != code:
                note(f"{folder} was begun by other code than the present one; --fresh starts anew")
        return dict(train(experiment, folder, progress=sys.stderr.isatty()))
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {error.filename or folder}: {error.strerror}; choose another --out"
        ) from None


def is_first() -> bool:
    """Whether this is the only process of the run, or the first of those that a launcher started."""
    import os

    return os.environ.get("RANK", "0") == "0"


def clear(folder: Path) -> None:
    """Remove an earlier run; refuse to remove what does not look like one."""
    import shutil

    from concordant.core.errors import ConfigError

    if not folder.exists():
        return
    if not (folder / "config.json").exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds files but no run (no config.json); --fresh will not delete it")
    shutil.rmtree(folder)


def _print(summary: dict[str, Any], folder: Path) -> None:
    rows = [(name, _number(value)) for name, value in summary.get("metrics", {}).items()]
    title = f"{summary['slug']}, arm {summary['arm']}, seed {summary['seed']}, profile {summary['profile']}"
    console().print(table(title, ("metric", "value"), rows, right=("value",)))
    note(f"{summary.get('wall_seconds', 0):.0f} s; run folder: {folder}")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
