"""Rewards of pairs: every pair once, sides by id, a failed judge is no tie."""

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from concordant.core.errors import DataError, RewardError
from concordant.core.table import Table
from concordant.experiment import build
from concordant.loops.records import as_rows, as_table
from concordant.loops.train import train
from concordant.scoring import Context, Engine, Verdict, as_reward, score, validate
from concordant.scoring.outcome import Rows
from concordant.scoring.pairs import all_pairs
from concordant.scoring.replay import rescore
from concordant.scoring.reward import load_reward, reward
from concordant.scoring.scores import columns_of
from tests.tiny import make_data, make_model

ROOM = Path(__file__).with_name("room.py")


def load(name: str, **options: Any) -> Any:
    return replace(load_reward(f"{ROOM}:{name}"), **options)


def table(*completions: str, group: Any = None, ids: Any = None, **fields: Any) -> Table:
    rows = len(completions)
    return Table.of(
        {
            "id": ("b", torch.tensor(ids if ids is not None else range(100, 100 + rows))),
            "group": ("b", torch.tensor(group if group is not None else [0] * rows)),
            "keep": ("b", torch.ones(rows, dtype=torch.bool)),
        },
        {"completion": list(completions), "prompt": ["p"] * rows, **fields},
    )


@reward(level="pair", order="index")
def first_wins(completion_left: str, completion_right: str) -> float:
    return {"a": 3, "b": 2, "c": 1}[completion_left] / 4


def test_every_pair_of_every_group_once() -> None:
    made = score(table("a", "a", "b", "c", "b", "c", group=[7, 9, 7, 7, 9, 5]), [as_reward(first_wins)])
    assert made.table["left"].tolist() == [0, 0, 2, 1]
    assert made.table["right"].tolist() == [2, 3, 3, 4]
    assert made.table["first_wins"].tolist() == [0.75, 0.75, 0.5, 0.75]
    assert made.table.axes("left") == made.table.axes("first_wins") == ("p",)
    assert made.calls == 4
    assert columns_of(as_reward(first_wins)) == {"first_wins": "p", "left": "p", "right": "p"}


def test_the_number_of_pairs_of_ragged_groups() -> None:
    sizes = [1, 2, 5, 8]
    group = [g for g, size in enumerate(sizes) for _ in range(size)]
    pairs = all_pairs(group)
    assert len(pairs) == len(set(pairs)) == 0 + 1 + 10 + 28
    assert all(left < right and group[left] == group[right] for left, right in pairs)


def test_groups_of_one_have_no_pairs() -> None:
    made = score(table("a", "b", group=[0, 1]), [as_reward(first_wins)])
    assert made.table["first_wins"].shape == made.table["left"].shape == (0,)
    assert made.table["left"].dtype == torch.int64
    assert made.missing == {"first_wins": {}}


# ---- sides ---------------------------------------------------------------------------------------------------------


@reward(level="pair")
def shown_first(completion_left: str, completion_right: str) -> float:
    return 1.0


def test_random_sides_depend_on_seed_and_ids_only() -> None:
    names = [f"c{i}" for i in range(40)]
    one = table(*names)
    with Engine([as_reward(shown_first, inline=True)], seed=3) as engine:
        first = score(one, [as_reward(shown_first, inline=True)], engine=engine).table
        again = score(
            one, [as_reward(shown_first, inline=True)], engine=engine, context=Context(step=5)
        ).table
    wins = first["shown_first"]
    assert set(wins.tolist()) == {0.0, 1.0}
    assert 0.44 < float(wins.mean()) < 0.56, "780 fair coins: five standard deviations are 0.09"
    assert torch.equal(wins, again["shown_first"]), "the step does not matter"
    other = score(one, [as_reward(shown_first)], engine=Engine([as_reward(shown_first, inline=True)], seed=4))
    assert 0.4 < float((other.table["shown_first"] == wins).float().mean()) < 0.6
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    with Engine([as_reward(shown_first, inline=True)], seed=3) as engine:
        moved = score(one.take(order), [as_reward(shown_first)], engine=engine).table
    assert _winners(moved, "shown_first") == _winners(first, "shown_first")


def _winners(made: Table, name: str) -> set[tuple[int, int, float]]:
    """Pairs by id, smaller first, with the share that it wins."""
    ids = made["id"].tolist()
    found = set()
    for left, right, share in zip(*(made[n].tolist() for n in ("left", "right", name)), strict=True):
        a, b = ids[left], ids[right]
        found.add((a, b, share) if a < b else (b, a, 1 - share))
    return found


def test_both_orders_cancel_a_bias_and_count_two_calls(tmp_path: Path) -> None:
    file = str(tmp_path / "asked")
    one = table("x", "yy", "zzz", file=[file] * 3)
    made = score(one, [load("leans_left", order="both")])
    assert made.table["leans_left"].tolist() == [0.5, 0.5, 0.5]
    assert made.calls == 6
    assert sorted(Path(file).read_text().splitlines()) == [
        "x yy",
        "x zzz",
        "yy x",
        "yy zzz",
        "zzz x",
        "zzz yy",
    ]
    detail = made.outcomes["leans_left"][0].detail
    assert detail == {"left": 100, "right": 101, "shown_left": "both", "shares": [1.0, 0.0]}
    random = score(one, [load("leans_left", cache=False)])
    shown = [o.detail["shown_left"] for o in random.outcomes["leans_left"]]
    ends = [(o.detail["left"], o.detail["right"]) for o in random.outcomes["leans_left"]]
    assert ends == [(100, 101), (100, 102), (101, 102)]
    for share, who, (left, _) in zip(random.table["leans_left"].tolist(), shown, ends, strict=True):
        assert share == float(who == left)


def test_a_turned_share_is_turned_back() -> None:
    @reward(level="pair", order="both")
    def graded(completion_left: str, completion_right: str) -> float:
        return {("a", "b"): 0.75, ("b", "a"): 0.5}[completion_left, completion_right]

    assert score(table("a", "b"), [as_reward(graded)]).table["graded"].tolist() == [(0.75 + 0.5) / 2]


# ---- what is missing -----------------------------------------------------------------------------------------------


def test_a_failed_judge_is_missing_never_a_tie() -> None:
    one = table("aa", "raise", "mute", "b", "bb")
    with Engine([load("longer", order="index")]) as engine:
        made = score(one, [load("longer", order="index")], engine=engine)
    ends = list(zip(made.table["left"].tolist(), made.table["right"].tolist(), strict=True))
    shares = dict(zip(ends, made.table["longer"].tolist(), strict=True))
    assert shares[0, 3] == 1.0
    assert shares[3, 4] == 0.0
    assert shares[0, 4] == 0.5, "a tie that the judge declared"
    assert sum(map(math.isnan, shares.values())) == 7
    reasons = {end: made.missing["longer"].get(place) for place, end in enumerate(ends)}
    assert reasons[0, 1] == "raised ValueError: no"
    assert reasons[2, 3] == "returned None"
    assert reasons[0, 3] is None
    assert made.stats["longer"].missing == {"raised ValueError: no": 4, "returned None": 3}


def test_a_judge_that_hangs_costs_its_pairs_only() -> None:
    one = table("hang", "aa", "b")
    with Engine([load("longer", order="index")]) as engine:
        made = score(one, [load("longer", order="index")], engine=engine)
    assert [made.missing["longer"].get(place) for place in range(3)] == ["timed out after 0.5 s"] * 2 + [None]
    assert made.table["longer"][2] == 1.0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (1.5, "returned 1.5, not a share in [0, 1]"),
        (-0.1, "returned -0.1, not a share in [0, 1]"),
        (math.nan, "returned nan"),
        ("left", "returned str, not a number"),
        (Verdict(2.0, 0.9), "returned 2, not a share in [0, 1]"),
        (Verdict(None, detail={"reason": "both are blank"}), "abstained: both are blank"),
    ],
)
def test_what_is_no_share_is_missing_with_its_reason(said: Any, reason: str) -> None:
    @reward(level="pair", order="index")
    def odd(completion_left: str, completion_right: str) -> Any:
        return said if completion_left == "a" else 1.0

    made = score(table("a", "b", "c"), [as_reward(odd)])
    assert made.table["odd"].isnan().tolist() == [True, True, False]
    assert made.missing["odd"] == {0: reason, 1: reason}
    assert made.table.fields["missing"] == [{}, {}, {}], "no row lacks a value of its own"


def test_half_an_answer_to_both_orders_is_none() -> None:
    @reward(level="pair", order="both")
    def half(completion_left: str, completion_right: str) -> float | None:
        return 1.0 if completion_left < completion_right else None

    made = score(table("a", "b"), [as_reward(half)])
    assert made.table["half"].isnan().all()
    assert made.outcomes["half"][0].detail["shares"] == [1.0, None]


def test_policies_on_missing_verdicts() -> None:
    rows = ("aa", "raise", "b", "cc", "d", "ee", "raise")
    group = [0, 0, 0, 1, 1, 2, 2]

    def kept(policy: str) -> list[bool]:
        one = load("longer", order="index", missing=policy)
        return score(table(*rows, group=group), [one]).table["keep"].tolist()

    assert kept("exclude") == [True] * 7
    assert kept("drop-rollout") == [True, False, True, True, True, False, False], "without any verdict"
    assert kept("drop-group") == [False, False, False, True, True, False, False]
    with pytest.raises(RewardError, match=r"no value for 3 of 5 pairs.*; the first: raised ValueError: no"):
        kept("fail")


def test_a_judge_that_fails_on_all_pairs_stops_the_run() -> None:
    with pytest.raises(RewardError, match="failed on all 3 pairs; the first: raised ValueError"):
        score(table("raise", "raise", "raise"), [load("longer")])


# ---- fields --------------------------------------------------------------------------------------------------------


def test_a_field_without_a_side_is_the_groups_own() -> None:
    @reward(level="pair", order="index")
    def match(prompt: str, completion_left: str, completion_right: str) -> float:
        return 0.5 + 0.5 * ((completion_left == prompt) - (completion_right == prompt))

    one = table("x", "y", "x", "y").with_columns(
        {"group": ("b", torch.tensor([0, 0, 1, 1]))}, {"prompt": ["x", "x", "y", "y"]}
    )
    assert score(one, [as_reward(match)]).table["match"].tolist() == [1.0, 0.0]
    mixed = one.with_columns({}, {"prompt": ["x", "x", "y", "z"]})
    with pytest.raises(
        RewardError, match=r"'prompt' without a side, but group 1 has .*'y' and 'z'.*prompt_left"
    ):
        score(mixed, [as_reward(match)])
    arrays = one.with_columns({}, {"prompt": [np.zeros(2), np.zeros(2), np.zeros(2), np.ones(2)]})
    with pytest.raises(RewardError, match=r"group 1 has .*an array and an array"):
        score(arrays, [as_reward(match)])


def test_what_a_reward_of_pairs_may_not_ask() -> None:
    def wrong(completion_lft: str, completion_right: str) -> float:
        return 1.0

    def sideless(prompt: str) -> float:
        return 1.0

    with pytest.raises(RewardError, match="did you mean 'completion_left'"):
        score(table("a", "b"), [as_reward(wrong, level="pair")])
    with pytest.raises(RewardError, match="names neither; give it parameters such as completion_left"):
        score(table("a", "b"), [as_reward(sideless, level="pair")])
    with pytest.raises(RewardError, match="no groups are given"), Engine([load("longer")]) as engine:
        engine.run(Rows({"completion": ["a", "b"]}))
    with pytest.raises(RewardError, match="unknown order 'rand'; did you mean 'random'"):
        as_reward(wrong, level="pair", order="rand")
    with pytest.raises(RewardError, match="unknown pairs 'some'"):
        as_reward(wrong, level="pair", pairs="some")
    with pytest.raises(RewardError, match="order='both' has no meaning at level 'rollout'"):
        as_reward(wrong, order="both")
    with pytest.raises(RewardError, match="compares rollouts"):
        validate([load("longer")], Rows({"prompt": ["p"]}, group=[0]), ["x"])


def test_keywords_get_both_sides_of_every_field() -> None:
    @reward(level="pair", order="index")
    def open_(**fields: Any) -> float:
        return float(
            sorted(fields) == ["completion_left", "completion_right", "prompt_left", "prompt_right"]
            and fields["completion_left"] == "a"
        )

    assert score(table("a", "b"), [as_reward(open_)]).table["open_"].tolist() == [1.0]


def test_tokens_of_both_sides() -> None:
    @reward(level="pair", order="index")
    def by_tokens(completion_ids_left: list[int], completion_ids_right: list[int]) -> float:
        return {((1, 2), (3,)): 0.25}[tuple(completion_ids_left), tuple(completion_ids_right)]

    one = table("a", "b").with_columns(
        {
            "tokens": ("b s", torch.tensor([[1, 2], [3, 0]])),
            "mask": ("b s", torch.tensor([[True, True], [True, False]])),
        }
    )
    assert score(one, [as_reward(by_tokens)]).table["by_tokens"].tolist() == [0.25]


def test_pairs_that_a_table_has_already_are_not_replaced() -> None:
    made = score(table("a", "b", "c"), [as_reward(first_wins)]).table
    assert torch.equal(score(made, [as_reward(shown_first)]).table["left"], made["left"])
    turned = made.with_columns({"left": ("p", made["right"]), "right": ("p", made["left"])})
    with pytest.raises(RewardError, match="has other pairs already"):
        score(turned, [as_reward(shown_first)])


# ---- one call for all pairs ----------------------------------------------------------------------------------------


@reward(level="pair", style="batch", order="random")
def network(image_left: list[Any], image_right: list[Any], prompt: list[str]) -> list[float]:
    """Stands for a judge network: one call for the pairs of all groups."""
    network.calls += 1  # type: ignore[attr-defined]
    assert len(image_left) == len(image_right) == len(prompt)
    left, right = np.stack(image_left).mean((1, 2, 3)), np.stack(image_right).mean((1, 2, 3))
    return list(np.where(left == right, 0.5, left > right))


def test_a_network_is_asked_once_about_all_pairs() -> None:
    network.calls = 0  # type: ignore[attr-defined]
    shown = list(np.random.default_rng(0).random((9, 4, 4, 1), dtype=np.float32))
    shown[8] = shown[7].copy()
    one = table(*"abcdefghi", group=[0] * 5 + [1] * 4, image=shown)
    for order in ("random", "both", "index"):
        made = score(one, [as_reward(network, order=order)]).table
        means = torch.tensor([float(image.mean()) for image in shown], dtype=torch.float64)
        expected = 0.5 + 0.5 * (means[made["left"]] - means[made["right"]]).sign()
        assert torch.equal(made["network"].double(), expected)
        assert made["network"][-1] == 0.5
    assert network.calls == 3  # type: ignore[attr-defined]


def test_a_network_that_miscounts_loses_all_pairs() -> None:
    @reward(level="pair", style="batch")
    def short(completion_left: list[str], completion_right: list[str]) -> list[float]:
        return [1.0]

    with pytest.raises(RewardError, match="returned 1 values for 3 pairs"):
        score(table("a", "b", "c"), [as_reward(short)])


def test_confidence_stands_beside_the_share() -> None:
    @reward(level="pair", order="both")
    def sure(completion_left: str, completion_right: str) -> Verdict:
        return Verdict(float(completion_left < completion_right), 0.8 if completion_left == "a" else 0.4)

    made = score(table("a", "b"), [as_reward(sure)]).table
    assert made["sure"].tolist() == [1.0]
    assert made["sure_confidence"].tolist() == [pytest.approx(0.6)]
    assert made.axes("sure_confidence") == ("p",)
    assert columns_of(as_reward(sure))["sure_confidence"] == "p"
    assert "verdicts" not in made.fields


def test_the_cache_knows_a_pair_in_the_order_in_which_it_was_asked(tmp_path: Path) -> None:
    file = str(tmp_path / "asked")
    one = table("x", "yy", file=[file] * 2)
    with Engine([load("leans_left", order="index")], cache=tmp_path / "c.sqlite") as engine:
        score(one, [load("leans_left", order="index")], engine=engine)
    with Engine([load("leans_left", order="both")], cache=tmp_path / "c.sqlite") as engine:
        made = score(one, [load("leans_left", order="both")], engine=engine)
        assert engine.stats["leans_left"].cached == 1
        assert made.table["leans_left"].tolist() == [0.5]
    assert Path(file).read_text().splitlines() == ["x yy", "yy x"]


def test_context_is_told_by_pair() -> None:
    @reward(level="pair", order="index")
    def drawn(completion_left: str, completion_right: str, context: Context) -> float:
        return context.rng.random()

    first = score(table("a", "b", "c"), [as_reward(drawn)]).table
    moved = score(table("c", "a", "b", ids=[102, 100, 101]), [as_reward(drawn)]).table
    assert len(set(first["drawn"].tolist())) == 3
    assert first["drawn"][0] == moved["drawn"][2], "the pair of rows 100 and 101"


# ---- runs and files ------------------------------------------------------------------------------------------------


def test_pairs_are_stored_with_their_left_row_and_restored() -> None:
    made = score(table("a", "b", "c", "a", group=[0, 0, 0, 1]), [as_reward(first_wins)]).table
    made = made.with_columns({"two": ("k p", torch.tensor([[1.0, 2, 3], [4, 5, math.nan]]))})
    back = as_table(as_rows(made))
    assert torch.equal(back["left"], made["left"])
    assert torch.equal(back["right"], made["right"])
    assert torch.equal(back["first_wins"], made["first_wins"])
    assert torch.equal(back["two"].nan_to_num(-1), made["two"].nan_to_num(-1))
    later = made.take(torch.tensor([3, 2, 0]))
    again = as_table(as_rows(later))
    assert (again["left"].tolist(), again["right"].tolist(), again["first_wins"].tolist()) == (
        [2],
        [1],
        [0.75],
    )
    columns = ("left", "right", "first_wins")
    named = {name: made[name] for name in ("id", "group", "keep")}
    dotted = Table.of(
        {name: ("b", column) for name, column in named.items()}
        | {f"q.{name}": ("p", made[name]) for name in columns}
    )
    assert torch.equal(as_table(as_rows(dotted))["q.right"], made["right"])
    none = score(table("a", "b", group=[0, 1]), [as_reward(first_wins)]).table
    assert as_table(as_rows(none))["first_wins"].shape == (0,)


def test_a_run_has_a_record_of_each_pair(tmp_path: Path) -> None:
    data, _ = make_data(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(
        "from concordant import reward\n\n\n@reward(level='pair', order='both')\n"
        "def wins(completion_left, completion_right):\n"
        "    if '7' in completion_left:\n        return None\n"
        "    return 0.5 + 0.5 * ((len(completion_left) > len(completion_right)) - "
        "(len(completion_left) < len(completion_right)))\n\n\n"
        "def short(completion):\n    return -float(len(completion))\n"
    )
    model = str(make_model(tmp_path))
    rewards = (f"{file}:short", f"{file}:wins")
    experiment = build(
        "grpo", model=model, data=data, profile="smoke", rewards=rewards[:1], sets=("train.max_new_tokens=4",)
    )
    both = tuple(map(load_reward, rewards))
    run = replace(experiment, arm=replace(experiment.arm, rewards=both))
    train(run, tmp_path / "run")
    records = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    step = [one for one in records if one["step"] == 1]
    alone = [one for one in step if one["reward"] == "short"]
    pairs = [one for one in step if one["reward"] == "wins"]
    groups = len(alone) // run.train.group_size
    assert len(pairs) == groups * math.comb(run.train.group_size, 2)
    details = [json.loads(one["detail"]) for one in pairs]
    ids = {one["id"] for one in alone}
    assert all(
        {d["left"], d["right"]} <= ids and one["id"] == d["left"]
        for d, one in zip(details, pairs, strict=True)
    )
    assert len({frozenset((d["left"], d["right"])) for d in details}) == len(pairs)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["missing_pairs"]["wins: returned None"] >= sum(one["value"] is None for one in pairs) > 0
    assert lines[0]["scores"]["wins"]["calls"] + lines[0]["scores"]["wins"]["repeated"] == 2 * len(pairs)


def test_stored_rollouts_cannot_be_compared(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"prompt": "p", "completion": "a"}\n' * 2)
    with pytest.raises((RewardError, DataError), match="writes a number for each one"):
        rescore(file, [load("longer")])


def test_the_examples_of_the_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "scoring.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.failed == 0
    assert found.attempted > 15
