"""What a returned thing means: a finite number, or missing with a short reason."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from concordant.core.errors import RewardError
from concordant.core.table import Table
from concordant.scoring.engine import Engine
from concordant.scoring.outcome import Outcome, Rows
from concordant.scoring.reward import Verdict, load_reward, reward
from concordant.scoring.scores import columns_of, score, validate
from concordant.scoring.values import LONGEST, number, outcome, raised
from concordant.scoring.workers.child import Frames, frame, pack, unpack

ROOM = Path(__file__).with_name("room.py")


@pytest.mark.parametrize(
    ("raw", "value", "reason"),
    [
        (1, 1.0, ""),
        (True, 1.0, ""),
        (np.float32(0.5), 0.5, ""),
        (np.int64(3), 3.0, ""),
        (np.bool_(False), 0.0, ""),
        (torch.tensor(0.25), 0.25, ""),
        (torch.tensor([0.25]), None, "returned Tensor, not a number"),
        (np.array([1.0]), None, "returned ndarray, not a number"),
        ("1", None, "returned str, not a number"),
        (np.str_("1"), None, "returned str_, not a number"),
        (1j, None, "returned complex, not a number"),
        ([1.0], None, "returned list, not a number"),
        (float, None, "returned type, not a number"),
        (None, None, "returned None"),
        (math.nan, None, "returned nan"),
        (-math.inf, None, "returned -inf"),
        (np.float64("inf"), None, "returned inf"),
        (10**400, None, "returned int, too large for a column"),
        (1e300, None, "returned 1e+300, too large for a column"),
    ],
)
def test_numbers(raw: Any, value: float | None, reason: str) -> None:
    assert number(raw) == (value, reason)
    assert outcome(raw, 0.5, 2) == Outcome(value, reason, seconds=0.5, attempts=2)
    assert value is None or type(outcome(raw, 0.0, 1).value) is float


def test_reasons_are_one_short_line() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert raised(ValueError("a\n  b")) == "raised ValueError: a b"
    assert raised(ValueError()) == "raised ValueError"
    assert raised(Silent()) == "raised Silent"
    assert len(raised(ValueError("x" * 10_000))) <= LONGEST + len("raised ValueError: ")


def test_outcomes_survive_the_way_to_the_parent() -> None:
    cases = [
        Outcome(0.1 + 0.2, seconds=0.5, attempts=1),
        Outcome(None, "returned None", seconds=0.5, attempts=1),
        Outcome(0.5, confidence=0.9, kind="judge", detail={"a": [1, None]}, seconds=0.5, attempts=1),
        Outcome((1.0, 2.5), seconds=0.5, attempts=1, sandbox="none"),
    ]
    for case in cases:
        assert unpack(json.loads(json.dumps(pack(case))), 0.5, 1) == case
    for forged in (
        math.inf,
        math.nan,
        "1",
        [1.0, "why", None, "", {}, ""],
        [None, "", None, "", {}, ""],
        [1],
        True,
        [0.5, "", "x", "", {}, ""],
        {"a": 1},
    ):
        with pytest.raises((ValueError, TypeError)):
            unpack(json.loads(json.dumps(forged)), 0.0, 1)


def test_messages_come_together_from_pieces() -> None:
    sent = [b"", b"x", b"y" * 1000]
    stream = b"".join(map(frame, sent))
    for size in (1, 7, len(stream)):
        frames = Frames()
        assert [m for i in range(0, len(stream), size) for m in frames.feed(stream[i : i + size])] == sent


def test_verdicts() -> None:
    with Engine([load_reward(f"{ROOM}:judged")]) as engine:
        texts = ["sure", "declines", "mute", "overconfident", "broken", "other"]
        found = engine.run(Rows({"completion": texts}))["judged"]
    assert (found[0].value, found[0].confidence, found[0].kind) == (0.5, 0.9, "judge")
    assert found[0].detail == {"why": "it fits", "odd": "{1}"}
    assert [o.reason for o in found] == [
        "",
        "abstained: two readings",
        "abstained",
        "the confidence of the verdict is 1.5, not in [0, 1]",
        "returned nan",
        "returned None",
    ]
    assert [o.value for o in found[1:]] == [None] * 5


# ---- columns -----------------------------------------------------------------------------------------------------


def table(*completions: str, **columns: Any) -> Table:
    rows = len(completions)
    mask = torch.tensor([[True, True, i % 2 == 0] for i in range(rows)])
    made = {
        "id": ("b", torch.arange(rows)),
        "group": ("b", torch.arange(rows) // 2),
        "mask": ("b s", mask),
        "tokens": ("b s", torch.arange(3 * rows).reshape(rows, 3)),
        "turn": ("b n", torch.tensor([[True, i % 2 == 0, True] for i in range(rows)])),
    }
    return Table.of({**made, **columns}, {"completion": list(completions)})


def same(tensor: torch.Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(
        tensor, torch.tensor(expected, dtype=torch.float32), equal_nan=True, rtol=0, atol=0
    )


NAN = math.nan


def test_levels_become_columns_with_their_axes() -> None:
    listed = [load_reward(f"{ROOM}:{name}") for name in ("by_segment", "by_step")]
    with Engine(listed) as engine:
        scores = score(table("three", "two", "none", "bad", "three", "three"), listed, engine=engine)
    made = scores.table
    assert (made.axes("by_segment"), made.axes("by_step")) == (("b", "n"), ("b", "s"))
    gone = [NAN] * 3
    same(made["by_segment"], [[1, 2, 3], [1, NAN, NAN], gone, gone, [1, 2, 3], gone])
    same(made["by_step"][:3], [[0, 1, 2], [3, 4, 0], [6, 7, 8]])
    assert made["by_step"].dtype == torch.float32
    assert scores.missing["by_segment"] == {
        2: "returned 2 values for 3 segments",
        3: "returned str, not a number, at place 2 of 2",
        5: "returned 3 values for 2 segments",
    }
    assert columns_of(listed[0]) == {"by_segment": "b n"}


def test_a_row_without_any_step_value_is_missing_in_its_trained_steps() -> None:
    @reward(level="step", inline=True)
    def none(completion: str) -> list[float | None]:
        return [None, None] if completion == "b" else [1.0, 2.0, 3.0]

    made = score(table("a", "b", "a"), [none]).table
    same(made["none"], [[1, 2, 3], [NAN, NAN, 0], [1, 2, 3]])


def test_checks_are_padded_to_the_longest_suite() -> None:
    listed = [load_reward(f"{ROOM}:by_check", inline=True)]
    same(score(table("101", "1", "", "0000"), listed).table["by_check"],
         [[1, 0, 1, NAN], [1, NAN, NAN, NAN], [NAN] * 4, [0, 0, 0, 0]])  # fmt: skip
    assert score(table(""), listed).table["by_check"].shape == (1, 1)
    parts = [score(table(text), listed).table for text in ("11", "1")]
    same(Table.concat(parts)["by_check"], [[1, 1], [1, NAN]])


def test_verdicts_leave_their_confidence_and_a_record() -> None:
    judged = load_reward(f"{ROOM}:judged", inline=True)
    made = score(table("sure", "other"), [judged]).table
    same(made["judged_confidence"], [0.9, NAN])
    assert made.fields["verdicts"][0]["judged"]["detail"]["why"] == "it fits"
    assert columns_of(judged) == {"judged": "b", "judged_confidence": "b"}
    assert "judged_confidence" in score(table("other"), [judged]).table, "the same columns whatever was said"

    @reward(inline=True)
    def plain(completion: str) -> Any:
        return Verdict(1.0, 0.5) if completion == "a" else 1.0

    same(score(table("a", "b"), [plain]).table["plain_confidence"], [0.5, NAN])
    assert "plain_confidence" not in score(table("b"), [plain]).table


@pytest.mark.parametrize(
    ("policy", "keep", "dropped"),
    [
        ("exclude", [True, True, True, True, False, True], 0),
        ("drop-rollout", [True, False, True, True, False, True], 1),
        ("drop-group", [False, False, True, True, False, True], 2),
    ],
)
def test_policies_act_on_keep(policy: str, keep: list[bool], dropped: int) -> None:
    def some(completion: str) -> float | None:
        return None if completion == "?" else 1.0

    reward(inline=True, missing=policy)(some)
    before = torch.tensor([True, True, True, True, False, True])  # the row that is out takes nobody out
    given = table("a", "?", "c", "d", "?", "f", keep=("b", before))
    scores = score(given, [some])
    assert scores.table["keep"].tolist() == keep
    assert scores.dropped == dropped
    assert scores.table["some"].isnan().tolist() == [False, True, False, False, True, False]
    assert given["keep"].tolist() == before.tolist()


def test_the_policy_fail_stops() -> None:
    @reward(inline=True, missing="fail")
    def some(completion: str) -> float | None:
        return None if completion == "?" else 1.0

    assert score(table("a", "b"), [some]).dropped == 0
    with pytest.raises(
        RewardError, match=r"'some' has no value for 1 of 2 rollouts.*the first: returned None"
    ):
        score(table("a", "?"), [some])


def test_an_engine_for_other_rewards_is_refused() -> None:
    first, second = (load_reward(f"{ROOM}:{name}", inline=True) for name in ("by_check", "judged"))
    with pytest.raises(RewardError, match="made for by_check, not for judged"):
        score(table("1"), [second], engine=Engine([first]))


def test_gold_answers_are_checked_without_a_model() -> None:
    def exact(completion: str, answer: str) -> float | None:
        return None if answer == "?" else float(completion == answer)

    given = Rows({"answer": ["4", "5", "?"]})
    failures = validate([exact], given, ["4", "5.0", "x"])
    assert [(f.reward, f.row, f.outcome.value, f.outcome.reason) for f in failures] == [
        ("exact", 1, 0.0, ""),
        ("exact", 2, None, "returned None"),
    ]
    assert validate([exact], Rows({"answer": ["4"]}), ["4"]) == []
    assert len(validate([exact], Rows({"answer": ["4"]}), ["4"], expected=0.5)) == 1
