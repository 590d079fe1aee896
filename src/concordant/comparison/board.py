"""The board: every system, what was measured of it, and whether the code has changed since."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from concordant.comparison.results import Result, read_result
from concordant.comparison.revision import revision

if TYPE_CHECKING:
    from concordant.core.recipe import Recipe

State = Literal["current", "older than its code", "not measured"]


@dataclass(frozen=True)
class Row:
    """One recipe on the board."""

    slug: str
    title: str
    state: State
    profile: str | None
    seeds: int
    claims: tuple[dict[str, Any], ...]
    wall_seconds: float | None
    measured: str | None

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "claims": list(self.claims)}


def board_row(recipe: "Recipe", results: Path) -> Row:
    """Return a recipe's row from its result file, if there is one."""
    path = results / f"{recipe.slug}.json"
    if not path.exists():
        return Row(recipe.slug, recipe.title, "not measured", None, 0, (), None, None)
    result = read_result(path)
    return Row(
        slug=recipe.slug,
        title=recipe.title,
        state="older than its code" if is_stale(recipe, result) else "current",
        profile=result["profile"],
        seeds=len(result["seeds"]),
        claims=tuple(result["claims"]),
        wall_seconds=result.get("wall_seconds"),
        measured=result.get("measured"),
    )


def is_stale(recipe: "Recipe", result: Result) -> bool:
    """Whether the recipe or a kernel it uses has changed since the result was measured."""
    return bool(result.get("revision") != revision(recipe))


def claim_text(claim: dict[str, Any]) -> str:
    """Say a claim in a few words: `accuracy: gdpo > grpo`."""
    sign = ">" if claim.get("direction", "higher") == "higher" else "<"
    return f"{claim['metric']}: {claim['arm']} {sign} {claim['versus']}"


def effect_text(claim: dict[str, Any]) -> str:
    """Return difference and interval: `+0.031 [+0.012, +0.050]`."""
    if claim["difference"] is None:
        return "–"
    if not claim["interval"]:
        return f"{claim['difference']:+.3f}"
    low, high = claim["interval"]
    return f"{claim['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def markdown(rows: Sequence[Row]) -> str:
    """Return the board as a Markdown page, one line a claim."""
    lines = [
        "# Board",
        "",
        "Each claim of each system on its small world: difference of the arms on the same seeds and budget,",
        "95 % paired t interval, verdict. Written by `concordant board`; one JSON a system lies beside this file.",
        "",
        "| System | Claim | Difference | Verdict | Profile, seeds | State |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        setting = f"{row.profile}, {row.seeds}" if row.profile else ""
        for claim in row.claims or (None,):
            cells = (claim_text(claim), effect_text(claim), claim["verdict"]) if claim else ("", "", "")
            lines.append(f"| {row.slug} | {' | '.join(cells)} | {setting} | {row.state} |")
    return "\n".join(lines) + "\n"
