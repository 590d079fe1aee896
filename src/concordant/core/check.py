"""Findings on a chain that is legal but probably not meant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from concordant.core.signature import kernel_name, names_of

if TYPE_CHECKING:
    from concordant.core.chain import Chain


NORMALISERS = frozenset({"group_zscore", "group_center", "group_loo", "group_rank", "group_minmax"})


@dataclass(frozen=True)
class Finding:
    """Something in a chain that deserves a second look."""

    code: str
    stage: str
    message: str


def check_chain(chain: "Chain") -> list[Finding]:
    """Return findings: two group normalisers over the same id on one path; a stage nobody reads."""
    upstream: dict[str, set[tuple[str, str]]] = {}
    findings = []
    read = {column.split(".")[0] for s in chain.stages.values() for column in s.columns_read}
    finals = {"advantage", "weight"}
    for name, stage in chain.stages.items():
        before = set().union(
            *(upstream.get(c.split(".")[0], set()) for c in names_of(stage.inputs.get("x", ())))
        )
        mine = set(before)
        if kernel_name(stage.kernel) in NORMALISERS:
            over = str(stage.inputs.get("group"))
            twice = [other for other, group in before if group == over]
            if twice:
                again = f"normalises over {over!r} again what {twice[0]!r} already normalised"
                message = f"{kernel_name(stage.kernel)} {again}"
                findings.append(Finding("double-normalisation", name, message))
            mine.add((name, over))
        upstream[name] = mine
        if name not in read | finals and not stage.keeps and name != list(chain.stages)[-1]:
            findings.append(
                Finding("unread-stage", name, f"no stage reads {name!r}; only an objective stream could")
            )
    return findings
