"""Samplers against a scripted policy: what is asked, what is replaced, what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.policies.lm import SamplePlan
from concordant.samplers import Ask, HintLadder, HintSchedule, Once, Refill
from concordant.samplers.base import Scored
from concordant.worlds.base import Task

LENGTH = 3


@dataclass
class Scripted:
    """A policy whose completion says what it was shown; `solves` decides which prompts end well."""

    solves: dict[str, int]
    asked: list[str]

    def sample(self, tasks: Sequence[Any], plan: SamplePlan, rng: Rng, *, first_id: int = 0) -> Table:
        group = torch.arange(len(tasks)).repeat_interleave(plan.group_size)
        self.asked.extend(str(task.prompt) for task in tasks)
        rows = len(group)
        texts = []
        for task in tasks:
            wins = self.solves.get(str(task.prompt), 0)
            texts += [("right" if i < wins else "wrong") for i in range(plan.group_size)]
        if tasks and str(tasks[0].prompt).startswith("hint for"):
            texts = ["bad json" if "q9" in task.prompt else f"hints {task.prompt[9:]}" for task in tasks]
        ids = first_id + torch.arange(rows)
        prompts = torch.tensor([[len(str(task.prompt))] for task in tasks])
        columns = {
            "id": ("b", ids),
            "task": ("b", torch.tensor([task.id for task in tasks])[group]),
            "group": ("b", first_id + group),
            "episode": ("b", ids),
            "prompt_tokens": ("b q", prompts[group]),
            "prompt_mask": ("b q", torch.ones(rows, 1, dtype=torch.bool)),
            "tokens": ("b s", torch.zeros(rows, LENGTH, dtype=torch.int64)),
            "mask": ("b s", torch.ones(rows, LENGTH, dtype=torch.bool)),
            "logp": ("b s", torch.zeros(rows, LENGTH)),
            "keep": ("b", torch.ones(rows, dtype=torch.bool)),
        }
        fields = {"completion": texts, "prompt": [str(tasks[g].prompt) for g in group.tolist()]}
        return Table.of(columns, fields)

    def score(self, table: Table) -> torch.Tensor:
        return table["prompt_tokens"].float().expand(-1, LENGTH).clone()


class Hinting:
    """The part of a world that the ladder needs."""

    hint_tokens = 8

    def hint_prompt(self, task: Task) -> str:
        return f"hint for {task.prompt}"

    def hinted_task(self, task: Task, hint: str) -> Task:
        return replace(task, prompt=f"{task.prompt}+{hint}")

    def parse_hints(self, text: str) -> dict[int, str] | None:
        return {1: "h1", 2: "h2", 3: "h3"} if text.startswith("hints") else None

    def hint_leaks(self, hint: str, answer: str) -> bool:
        return hint == answer


def ask(*prompts: str, size: int = 4, answers: Sequence[str] = ()) -> Ask:
    given = list(answers) or ["a"] * len(prompts)
    tasks = [
        Task(100 + i, prompt, {"answer": answer})
        for i, (prompt, answer) in enumerate(zip(prompts, given, strict=True))
    ]
    extra = iter(range(1000))

    def draw(count: int) -> list[Task]:
        return [Task(500 + (i := next(extra)), f"extra{i}", {"answer": "a"}) for _ in range(count)]

    return Ask(tasks, SamplePlan(group_size=size, max_new_tokens=LENGTH), Hinting(), draw)


def score(table: Table) -> Scored:
    values = torch.tensor([float(text == "right") for text in table.fields["completion"]])
    return Scored(table.with_columns({"correct": ("b", values)}), table.rows)


def test_once_samples_and_scores_once() -> None:
    drawn = Once()(ask("q0", "q1"), Scripted({"q0": 2}, []), score, Rng(), {})
    assert drawn.rows.rows == 8
    assert (drawn.cost.tokens, drawn.cost.rollouts, drawn.cost.reward_calls) == (24, 8, 8)


def test_refill_keeps_informative_groups_until_enough() -> None:
    policy = Scripted({"q0": 2, "q1": 4, "extra0": 1, "extra1": 0}, [])
    drawn = Refill("correct")(ask("q0", "q1"), policy, score, Rng(), {})
    assert [drawn.rows.fields["prompt"][i] for i in (0, 4)] == ["q0", "extra0"]
    assert drawn.rows.rows == 8
    assert len(set(drawn.rows["id"].tolist())) == 8
    assert drawn.rows["group"].unique().numel() == 2
    assert drawn.cost.rollouts == 16
    assert drawn.log == {"refill_rounds": 2.0, "refill_short": 0.0}


def test_refill_stops_and_says_how_much_is_lacking() -> None:
    drawn = Refill("correct", rounds=3)(ask("q0", "q1"), Scripted({}, []), score, Rng(), {})
    assert drawn.rows.rows == 8
    assert drawn.log == {"refill_rounds": 3.0, "refill_short": 2.0}


def test_the_ladder_stops_at_the_first_level_that_solves() -> None:
    """Level 0 and 1 fail, level 2 solves: level 3 is never used, other prompts' rows stay."""
    policy = Scripted({"q1": 4, "q0+h2": 1}, [])
    drawn = HintLadder()(ask("q0", "q1"), policy, score, Rng(), {})
    assert policy.asked == ["q0", "q1", "hint for q0", "q0+h1", "q0+h2"]
    by_group = {
        int(g): sorted(drawn.rows["hint_level"][drawn.rows["group"] == g].unique().tolist()) for g in (0, 1)
    }
    assert by_group == {0: [2.0], 1: [0.0]}
    assert drawn.rows.rows == 8
    assert sorted(drawn.rows["id"].tolist()) == list(range(8))
    assert drawn.cost.rollouts == 8 + 1 + 4 + 4
    assert drawn.log["unsolved_prompts"] == 0


def test_rows_of_other_prompts_are_bit_equal_and_replaced_by_id() -> None:
    plain = Once()(ask("q0", "q1"), Scripted({"q1": 4}, []), score, Rng(), {})
    drawn = HintLadder()(ask("q0", "q1"), Scripted({"q1": 4, "q0+h1": 1}, []), score, Rng(), {})
    kept = drawn.rows.take(drawn.rows["group"] == 1)
    assert torch.equal(kept["prompt_tokens"], plain.rows["prompt_tokens"][4:])
    assert kept.fields["completion"] == plain.rows.fields["completion"][4:]


def test_a_solved_prompt_costs_no_hint_and_all_correct_is_left_alone() -> None:
    policy = Scripted({"q0": 1, "q1": 4}, [])
    HintLadder()(ask("q0", "q1"), policy, score, Rng(), {})
    assert policy.asked == ["q0", "q1"]


def test_never_solved_ends_at_the_last_level_without_error() -> None:
    drawn = HintLadder()(ask("q0"), Scripted({}, []), score, Rng(), {})
    assert drawn.rows["hint_level"].unique().tolist() == [3.0]
    assert drawn.log["unsolved_prompts"] == 1


def test_unreadable_and_leaking_hints_leave_the_rollouts() -> None:
    policy = Scripted({"q0+h2": 1}, [])
    drawn = HintLadder()(ask("q9", "q0", answers=["a", "h1"]), policy, score, Rng(), {})
    assert drawn.log["hints_lost"] == 1
    assert drawn.rows["hint_level"][drawn.rows["group"] == 0].unique().tolist() == [0.0]
    assert "q0+h1" not in policy.asked, "a hint that gives the answer away is skipped"
    assert "q0+h2" in policy.asked


def test_the_context_decides_what_log_probabilities_see() -> None:
    hinted = HintLadder()(ask("q0"), Scripted({"q0+h1": 1}, []), score, Rng(), {}).rows
    plain = HintLadder(context="plain")(ask("q0"), Scripted({"q0+h1": 1}, []), score, Rng(), {}).rows
    assert hinted["prompt_tokens"].unique().tolist() == [len("q0+h1")]
    assert plain["prompt_tokens"].unique().tolist() == [len("q0")]
    assert plain["logp"].unique().tolist() == [float(len("q0"))], "re-scored without the hint"
    assert plain.fields["prompt"] == ["q0"] * 4


def test_hints_of_the_start_come_from_the_reference() -> None:
    policy, start = Scripted({"q0+h1": 1}, []), Scripted({}, [])
    HintLadder(writer="reference")(replace(ask("q0"), reference=start), policy, score, Rng(), {})
    assert start.asked == ["hint for q0"]
    assert HintLadder(writer="reference").needs_reference


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [(HintSchedule(up=0.1, down=0.35), (1, 0, 3, 2)), (HintSchedule(up=0.35, down=1.0), (1, 1, 3, 3))],
)
def test_light_schedule_with_code_and_paper_thresholds(
    schedule: HintSchedule, levels: tuple[int, ...]
) -> None:
    visits = zip((0, 1, 3, 2), (0.0, 0.5, 0.0, 0.2), strict=True)
    assert tuple(schedule.next_level(level, rate) for level, rate in visits) == levels
    swapped = replace(schedule, up=schedule.down, down=schedule.up)
    assert swapped.next_level(0, 0.0) == schedule.next_level(0, 0.0), (
        "thresholds in the wrong order are swapped"
    )


def test_light_remembers_levels_per_task() -> None:
    sampler, policy = HintSchedule(), Scripted({"q1": 4, "q0+h1": 2}, [])
    first = sampler(ask("q0", "q1"), policy, score, Rng(), sampler.init())
    assert first.state == {"level": {"100": 1, "101": 0}}
    second = sampler(ask("q0", "q1"), policy, score, Rng(), first.state)
    assert policy.asked[-2:] == ["q0+h1", "q1"]
    assert second.state["level"]["100"] == 0
