"""`concordant explain`: how one rollout got its credit."""

from pathlib import Path
from typing import Any

import typer

from concordant.cli.console import JSON_HELP, console, emit, table


def verb(
    run: Path = typer.Argument(help="Run folder, e.g. runs/gdpo/gdpo/seed0."),
    rollout: int = typer.Option(
        0, "--rollout", help="Which of the stored rollouts of the step, from 0.", min=0
    ),
    step: int = typer.Option(-1, "--step", help="Training step; the last stored one if left out."),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Explain a stored rollout's credit stage by stage: kernel, inputs and value."""
    from concordant.report.rollouts import explained

    told = explained(run, rollout, None if step < 0 else step)
    emit(told) if json else _print(told)


def _print(told: dict[str, Any]) -> None:
    out = console()
    rollout = told["rollout"]
    out.print(
        f"rollout {rollout['index']} of step {rollout['step']} (id {rollout['id']}, group {rollout['group']}); "
        f"{told['slug']}, arm {told['arm']}, seed {told['seed']}",
        style="bold",
    )
    for name in ("prompt", "completion", "image"):
        if rollout.get(name) or (name == "completion" and "image" not in rollout):
            out.print(f"\n{name}:", style="bold")
            out.print(rollout[name], markup=False)
    rows = [
        (s["stage"], s["kernel"], _inputs(s["inputs"]), _short(s["value"]), s["summary"])
        for s in told["steps"]
    ]
    out.print(table("credit, stage by stage", ("stage", "kernel", "inputs", "value", "what it does"), rows))


def _inputs(inputs: dict[str, Any]) -> str:
    return "\n".join(f"{name} = {_short(value)}" for name, value in inputs.items())


def _short(value: Any) -> str:
    """Return a value in a few characters; of a long list its distinct values."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        if len(value) <= 4:
            return "[" + ", ".join(map(_short, value)) + "]"
        distinct = list(dict.fromkeys(map(_short, value)))
        few = ", ".join(distinct[:4]) + (", ..." if len(distinct) > 4 else "")
        return f"{len(value)} values: {few}"
    if value is None or value != value:
        return "missing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
