"""What an arm changes against the method, as data and as sentences: chain, rewards, objective, sampler, budget."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from concordant.core.config import plain
from concordant.core.edits import changes_as_data, difference
from concordant.core.errors import ConcordantError

if TYPE_CHECKING:
    from concordant.core.recipe import Arm, Recipe

Change = dict[str, Any]


def arm_changes(method: "Arm", arm: "Arm") -> list[Change]:
    """Return what turns the method into the arm: `{"part", "stage", "what", "before", "after"}` each."""
    changes = [{"part": "chain", **change} for change in changes_as_data(difference(method.chain, arm.chain))]
    for field in fields(method):
        if field.name in ("chain", "note"):
            continue
        before, after = (_flat(outline(getattr(each, field.name))) for each in (method, arm))
        changes += [
            {
                "part": field.name,
                "stage": None,
                "what": key,
                "before": before.get(key),
                "after": after.get(key),
            }
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
    return changes


def all_changes(recipe: "Recipe") -> dict[str, list[Change]]:
    """Return the changes of every arm against the method."""
    return {name: arm_changes(recipe.arm(), arm) for name, arm in recipe.arms.items()}


def sentence(change: Mapping[str, Any]) -> str:
    """Say one change in words, from the method's side: what this arm does instead."""
    before, after = _short(change["before"]), _short(change["after"])
    if change["part"] != "chain":
        name = change["part"] + (f".{change['what']}" if change["what"] else "")
        if change["before"] is None:
            return f"{name} = {after}"
        return (
            f"{name}: {before} → {after}"
            if change["after"] is not None
            else f"{name}: none (method: {before})"
        )
    stage, what = change["stage"], change["what"]
    if what == "stage":
        return (
            f"adds stage {stage} ({after})"
            if change["before"] is None
            else f"leaves out stage {stage} ({before})"
        )
    if what == "order":
        return f"order of stages: {after}"
    if what.startswith("reads "):
        return f"{stage} reads {after} instead of {before}"
    return f"{stage}: {what.removeprefix('option ')} {before} → {after}"


def outline(value: Any) -> Any:
    """Turn an arm's part into plain data; what has no plain form is named by its type."""
    try:
        return plain(value)
    except ConcordantError:
        return type(value).__name__


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{path}.{key}" if path else str(key)).items()
        }
    return {} if value is None or value == {} else {path: value}


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_short(inner) for inner in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
