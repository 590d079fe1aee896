"""Whatever a reward does wrong becomes a missing value with its reason, never a number."""

import math

import pytest
import torch

from concordant.core.errors import ConfigError, RewardError
from concordant.core.table import Table
from concordant.scoring import LogProb, Models, WorldScore, as_reward, score


def table(*completions: str) -> Table:
    rows = len(completions)
    mask = torch.ones(rows, 2, dtype=torch.bool)
    columns = {
        "mask": ("b s", mask),
        "tokens": ("b s", torch.arange(2 * rows).reshape(rows, 2)),
        "group": ("b", torch.zeros(rows, dtype=torch.int64)),
    }
    fields = {"completion": list(completions), "prompt": ["p"] * rows, "answer": ["a"] * rows}
    return Table.of(columns, fields)


def flaky(completion: str, answer: str) -> object:
    return (
        {"ok": 1.0, "none": None, "nan": math.nan, "inf": math.inf, "text": "1.0", "raise": 1}[completion]
        if (completion != "raise")
        else 1 / 0
    )


def test_every_failure_is_missing_with_its_reason() -> None:
    scores = score(table("ok", "none", "nan", "inf", "text", "raise"), [as_reward(flaky)])
    assert scores.table["flaky"].isnan().tolist() == [False, True, True, True, True, True]
    reasons = scores.missing["flaky"]
    assert reasons[1] == "returned None"
    assert reasons[2] == "returned nan"
    assert reasons[3] == "returned inf"
    assert reasons[4] == "returned str, not a number"
    assert reasons[5].startswith("raised ZeroDivisionError")
    assert scores.calls == 6
    assert scores.table.fields["missing"][:2] == [{}, {"flaky": "returned None"}]


def test_fields_are_passed_by_name_and_an_unknown_one_names_the_nearest() -> None:
    def wants(completion: str, anser: str) -> float:
        return 1.0

    with pytest.raises(RewardError, match=r"asks for the field 'anser'.*did you mean 'answer'"):
        score(table("x"), [as_reward(wants)])

    def optional(completion: str, anser: str = "b") -> float:
        return float(anser == "b")

    assert score(table("x"), [as_reward(optional)]).table["optional"].tolist() == [1.0]


def test_trl_style_functions_run_unchanged() -> None:
    def trl(
        prompts: list[str], completions: list[str], answer: list[str], **kwargs: object
    ) -> list[float | None]:
        assert kwargs["completion_ids"] == [[0, 1], [2, 3]]
        return [float(len(c)) if c != "skip" else None for c in completions]

    scores = score(table("abc", "skip"), [as_reward(trl)])
    assert scores.table["trl"][0] == 3
    assert scores.table["trl"][1].isnan()


def test_async_functions_are_awaited() -> None:
    async def slow(completion: str) -> float:
        return float(len(completion))

    async def batch(completions: list[str]) -> list[float]:
        return [1.0 for _ in completions]

    made = score(table("ab", "c"), [as_reward(slow), as_reward(batch)]).table
    assert made["slow"].tolist() == [2.0, 1.0]
    assert made["batch"].tolist() == [1.0, 1.0]


def test_a_wrong_count_is_missing_for_all_and_stops_the_run() -> None:
    def short(completions: list[str]) -> list[float]:
        return [1.0]

    with pytest.raises(RewardError, match="returned 1 values for 2 completions"):
        score(table("a", "b"), [as_reward(short)])


def test_a_reward_that_fails_on_everything_stops_but_one_that_abstains_does_not() -> None:
    def broken(completion: str) -> float:
        raise RuntimeError("judge 503")

    def abstains(completion: str) -> None:
        return None

    with pytest.raises(
        RewardError, match=r"failed on all 2 rollouts; the first: raised RuntimeError: judge 503"
    ):
        score(table("a", "b"), [as_reward(broken)])
    assert score(table("a", "b"), [as_reward(abstains)]).table["abstains"].isnan().all()


def test_callable_objects_keep_their_class_name() -> None:
    class Longer:
        def __call__(self, completion: str) -> float:
            return float(len(completion) > 1)

    assert score(table("a", "bb"), [as_reward(Longer())]).table["Longer"].tolist() == [0.0, 1.0]
    with pytest.raises(RewardError, match="must be callable"):
        as_reward("correct")


def test_probes_say_what_they_lack() -> None:
    class World:
        name, scorers = "w", {}

    with pytest.raises(ConfigError, match="needs a reference"):
        LogProb("reference")(Models(policy=None), table("a"))
    with pytest.raises(ConfigError, match="has no scorer 'step_score'"):
        WorldScore("step_score")(Models(policy=None, world=World()), table("a"))
