"""Self-hints of SAGE: prompts that no rollout solved are sampled again with hints that the policy wrote itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels import group_mean, no_positive_groups
from concordant.samplers.base import Ask, Cost, Drawn, Scored, cost_of

NEEDS = ("hint_prompt", "hinted_task", "parse_hints", "hint_leaks", "hint_tokens")
"""What a world must offer for its policy to write hints."""


def _write_hints(
    ask: Ask, writer: Any, tasks: Sequence[Any], rng: Rng
) -> tuple[dict[int, dict[int, str]], Cost]:
    """Ask a model for three levels of hints a task; one it fails to write, or that leaks the answer, is left out."""
    prompts = [replace(task, prompt=ask.world.hint_prompt(task)) for task in tasks]
    rows = writer.sample(prompts, replace(ask.plan, group_size=1, max_new_tokens=ask.world.hint_tokens), rng)
    hints: dict[int, dict[int, str]] = {}
    for task, text in zip(tasks, rows.fields["completion"], strict=True):
        parsed = ask.world.parse_hints(text) or {}
        hints[task.id] = {
            k: h for k, h in parsed.items() if h and not ask.world.hint_leaks(h, task.fields["answer"])
        }
    return hints, cost_of(rows)


def _replace_groups(table: Table, fresh: Table) -> Table:
    """Replace the rows of every group in `fresh`, by group id."""
    return Table.concat([table.take(~torch.isin(table["group"], fresh["group"])), fresh])


def _sample_groups(ask: Ask, policy: Any, tasks: Sequence[Any], groups: Sequence[int], rng: Rng) -> Table:
    """Sample tasks whose rows carry given group ids; row ids are group id + member, so they replace by id."""
    rows = policy.sample(tasks, ask.plan, rng)
    group = torch.tensor(groups).repeat_interleave(ask.plan.group_size)
    member = torch.arange(ask.plan.group_size).repeat(len(tasks))
    ids = group * ask.plan.group_size + member
    return rows.with_columns({"id": ("b", ids), "episode": ("b", ids), "group": ("b", group)})


def _plain_context(rows: Table, original: Table, policy: Any) -> Table:
    """Put the unhinted prompt in front of hinted completions and re-score them (the off-policy control of SAGE)."""
    source = {int(g): i for i, g in enumerate(original["group"].tolist())}
    index = torch.tensor([source[int(g)] for g in rows["group"].tolist()])
    rows = rows.with_columns(
        {name: (original.axes(name), original[name][index]) for name in ("prompt_tokens", "prompt_mask")},
        fields={"prompt": [original.fields["prompt"][i] for i in index.tolist()]},
    )
    return rows.with_columns({"logp": ("b s", policy.score(rows))})


@dataclass(frozen=True)
class HintLadder:
    """Within one step: sample plainly; prompts without a positive `metric` climb hint levels 1..`levels`.

    A hinted group replaces the whole group and keeps its hint in the prompt, so that log-probabilities are on-policy
    (`context="hinted"`); `"plain"` removes it again, the variant that the authors measured as worse. With
    `writer="reference"` the frozen start writes the hints, not the current policy. Evaluation never sees a hint.
    """

    metric: str = "correct"
    levels: int = 3
    writer: Literal["policy", "reference"] = "policy"
    context: Literal["hinted", "plain"] = "hinted"

    needs: tuple[str, ...] = NEEDS

    @property
    def needs_reference(self) -> bool:
        """Hints of the start need the frozen start."""
        return self.writer == "reference"

    def init(self) -> dict[str, Any]:
        """No state."""
        return {}

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Climb the ladder."""
        groups = list(range(len(ask.tasks)))
        rows = _sample_groups(ask, policy, ask.tasks, groups, rng.child("level0"))
        original = rows
        scored = score(rows)
        table, cost = (
            scored.table.with_columns({"hint_level": ("b", torch.zeros(rows.rows))}),
            cost_of(rows, scored.calls),
        )
        open_groups = _unsolved(table, self.metric)
        log = {"hinted_prompts": float(len(open_groups))}
        hints: dict[int, dict[int, str]] = {}
        if open_groups:
            writer = policy if self.writer == "policy" else ask.reference
            hints, spent = _write_hints(ask, writer, [ask.tasks[g] for g in open_groups], rng.child("hints"))
            cost = cost + spent
        log["hints_lost"] = float(sum(not hints[ask.tasks[g].id] for g in open_groups))
        for level in range(1, self.levels + 1):
            todo = [g for g in open_groups if level in hints.get(ask.tasks[g].id, {})]
            if not todo:
                continue
            tasks = [ask.world.hinted_task(ask.tasks[g], hints[ask.tasks[g].id][level]) for g in todo]
            rows = _sample_groups(ask, policy, tasks, todo, rng.child(f"level{level}"))
            cost = cost + cost_of(rows)
            if self.context == "plain":
                rows = _plain_context(rows, original, policy)
            scored = score(rows)
            cost = cost + Cost(reward_calls=scored.calls)
            level_column = torch.full((rows.rows,), float(level))
            table = _replace_groups(table, scored.table.with_columns({"hint_level": ("b", level_column)}))
            open_groups = [g for g in open_groups if g in _unsolved(table, self.metric)]
        return Drawn(table, state, cost, {**log, "unsolved_prompts": float(len(open_groups))})


def _unsolved(table: Table, metric: str) -> list[int]:
    """Groups without a positive member (all-correct groups are solved)."""
    unsolved = no_positive_groups(table[metric], table["group"])
    return sorted(set(table["group"][unsolved].tolist()))


@dataclass(frozen=True)
class HintSchedule:
    """SAGE-light: one sampling a step at a hint level remembered per task, raised or lowered by the success rate.

    Level up if the mean of `metric` is at most `up`, down if above `down` [code]; the paper's rule has one threshold
    (`up=0.35`, `down=1`) and never goes down. A task seen for the first time starts at level 0.
    """

    metric: str = "correct"
    levels: int = 3
    up: float = 0.1
    down: float = 0.35
    needs_reference: bool = False
    needs: tuple[str, ...] = NEEDS

    def init(self) -> dict[str, Any]:
        """Level of every task seen so far."""
        return {"level": {}}

    def next_level(self, level: int, rate: float) -> int:
        """Return the level after a visit with this success rate."""
        low, high = sorted((self.up, self.down))
        if rate <= low:
            return min(level + 1, self.levels)
        return max(level - 1, 0) if rate > high else level

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample every task once, at its level."""
        levels = {task.id: int(state["level"].get(str(task.id), 0)) for task in ask.tasks}
        hinted = [task for task in ask.tasks if levels[task.id] > 0]
        hints, cost = _write_hints(ask, policy, hinted, rng.child("hints")) if hinted else ({}, Cost())
        tasks = []
        for task in ask.tasks:
            hint = hints.get(task.id, {}).get(levels[task.id])
            tasks.append(ask.world.hinted_task(task, hint) if hint else task)
        scored = score(policy.sample(tasks, ask.plan, rng.child("rollouts")))
        rates = group_mean(scored.table[self.metric], scored.table["group"])
        seen = dict(zip(scored.table["task"].tolist(), rates.tolist(), strict=True))
        moved = {
            str(task): self.next_level(levels[task], rate) for task, rate in seen.items() if rate == rate
        }
        log = {
            "hinted_prompts": float(len(hinted)),
            "hints_lost": float(len(hinted) - sum(bool(h) for h in hints.values())),
        }
        return Drawn(
            scored.table,
            {"level": {**state["level"], **moved}},
            cost + cost_of(scored.table, scored.calls),
            log,
        )
