"""`concordant show`: one recipe in full."""

from typing import Any

import typer

from concordant.cli.console import JSON_HELP, console, emit, say, table


def verb(
    slug: str = typer.Argument(help="Recipe, e.g. gdpo."),
    expand: bool = typer.Option(False, "--expand", help="Every option of every stage, defaults too."),
    diff: str = typer.Option(
        "", "--diff", metavar="ARM", help="Only what this arm changes against the method."
    ),
    json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Show a recipe: its stages in order, its arms and what they change, its claims and where defaults come from."""
    from concordant import recipes
    from concordant.comparison.differences import arm_changes, sentence

    recipe = recipes.get(slug)
    if diff:
        changes = arm_changes(recipe.arm(), recipe.arm(diff))
        if json:
            emit({"slug": slug, "arm": diff, "changes": changes})
        else:
            say(f"{diff}, against {slug}:")
            say(
                "\n".join(f"  {sentence(change)}" for change in changes) or "  nothing: it is the same method"
            )
        return
    described = describe(recipe)
    emit(described) if json else _print(described, expand)


def describe(recipe: Any) -> dict[str, Any]:
    """Return a recipe as plain data."""
    from concordant.comparison.differences import all_changes
    from concordant.core.config import plain
    from concordant.core.edits import as_data
    from concordant.core.recipe import PROFILES, train_config

    method = recipe.arm()
    return {
        "slug": recipe.slug,
        "kind": recipe.kind,
        "title": recipe.title,
        "source": recipe.source,
        "world": {"name": recipe.world, "options": dict(recipe.world_options)},
        "rewards": plain(method.rewards),
        "chain": plain(as_data(method.chain)),
        "objective": plain(method.objective),
        "sampler": plain(method.sampler),
        "baseline": recipe.baseline,
        "controls": [*recipe.controls],
        "arms": {
            name: {"note": recipe.arm(name).note, "changes": changes}
            for name, changes in all_changes(recipe).items()
        },
        "claims": [plain(claim) for claim in recipe.claims],
        "provenance": dict(recipe.provenance),
        "profiles": {
            name: {"arms": [*recipe.arms_of(name)], "train": plain(train_config(recipe, name, method)[0])}
            for name in PROFILES
        },
    }


def _print(shown: dict[str, Any], expand: bool) -> None:
    out = console()
    out.print(f"[bold]{shown['slug']}[/] ({shown['kind']}), on {shown['world']['name']}")
    out.print(shown["title"] + (f"\n{shown['source']}" if shown["source"] else ""), markup=False)
    out.print(f"\nrewards: {', '.join(map(str, shown['rewards']))}", markup=False)
    out.print(_stages(shown["chain"], expand))
    out.print(f"objective: {_outline(shown['objective'], expand)}", markup=False)
    if shown["sampler"]:
        out.print(f"sampler: {_outline(shown['sampler'], expand)}", markup=False)
    out.print(_arms(shown))
    if shown["claims"]:
        out.print(_claims(shown["claims"]))
    if shown["provenance"]:
        out.print(table("where defaults come from", ("what", "source"), list(shown["provenance"].items())))
    out.print(_profiles(shown["profiles"]))


def _stages(chain: dict[str, Any], expand: bool) -> Any:
    rows = []
    for name, stage in chain.items():
        reads = ", ".join(f"{k}={_columns(v)}" for k, v in stage["reads"].items())
        options = {k: v for k, v in stage["options"].items() if expand or v is not None}
        rows.append((name, stage["kernel"], reads, _options(options), "keep" if stage["keeps"] else ""))
    return table("stages, in order", ("column", "kernel", "reads", "options", ""), rows)


def _columns(value: Any) -> str:
    return value if isinstance(value, str) else "(" + ", ".join(value) + ")"


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _outline(value: Any, expand: bool) -> str:
    """Return a part in one line: type or kernel, and its options."""
    if isinstance(value, dict):
        name = value.get("type") or value.get("kernel") or ""
        inner = value.get("options", {k: v for k, v in value.items() if k not in ("type", "kernel")})
        kept = {k: v for k, v in inner.items() if expand or v not in (None, [], {})}
        return f"{name}({', '.join(f'{k}={_outline(v, expand)}' for k, v in kept.items())})"
    if isinstance(value, list):
        return "(" + ", ".join(_outline(each, expand) for each in value) + ")"
    return str(value)


def _arms(shown: dict[str, Any]) -> Any:
    from concordant.comparison.differences import sentence

    rows = []
    for name, arm in shown["arms"].items():
        role = "method" if name == shown["slug"] else "baseline" if name == shown["baseline"] else ""
        role = role or ("control" if name in shown["controls"] else "")
        changes = "\n".join(sentence(change) for change in arm["changes"])
        rows.append((name, role, "\n".join(filter(None, (arm["note"], changes))) or "–"))
    return table("arms, and what each changes against the method", ("arm", "role", "changes"), rows)


def _claims(claims: list[dict[str, Any]]) -> Any:
    rows = [
        (
            f"{claim['metric']} {claim['direction']} than {claim['versus']}",
            claim["arm"] or "method",
            f"{claim['margin']:g}" if claim["margin"] else "–",
            f"{claim['meter']} ≥ {claim['disease']:g}" if claim["meter"] else "–",
            claim["refuted_by"] or "–",
        )
        for claim in claims
    ]
    return table("claims", ("claim", "arm", "margin", "only where", "refuted by"), rows)


def _profiles(profiles: dict[str, Any]) -> Any:
    keys = ("steps", "prompts", "group_size", "max_new_tokens", "lr", "eval_prompts")
    rows = [
        (name, ", ".join(each["arms"]), *(each["train"][key] for key in keys))
        for name, each in profiles.items()
    ]
    return table("profiles", ("profile", "arms", *keys), rows, right=keys)
