"""Judging traces, and the columns read from tokens, on hand-made completions."""

import pytest
import torch

from concordant.core.table import Table
from concordant.worlds.lm_arithmetic import columns, vocabulary
from concordant.worlds.lm_arithmetic.traces import assess, judge, read_step

CHAIN = "12+7-3"


@pytest.mark.parametrize(
    ("think", "valid", "implied", "complete"),
    [
        ("12+7=19;19-3=16", (True, True), 16, True),
        ("12+7=19\n19-3=16;", (True, True), 16, True),
        (" 12 + 7 = 19 ; 19-3=16", (True, True), 16, True),
        ("12+7-3=16", (True,), 16, True),
        ("12+7-3;12+7=19;19-3=16;check 19-3=16", (True, True, True, True), 16, True),
        ("12+7=18;18-3=15", (False, True), 15, True),  # a slip that the rest follows
        ("12+7=18;19-3=16", (False, False), 16, True),  # written wrong, continued from the true value
        ("12+7=19", (True,), 19, False),
        ("12+7=19;19-4=15", (True, False), 15, False),  # right arithmetic, not the question's term
        ("12-3=9;9+7=16", (False, False), 16, False),  # the chain goes from left to right
        ("12+7=19;19-3=16;16+1=17", (True, True, False), 17, False),
        ("12+7-4;12+7=19;19-3=16", (False, True, True), 16, True),  # restates another sum
        ("12+7=19;check 12+7=18;19-3=16", (True, False, True), 16, True),
        ("12+7=;=19;19-3=16", (False, False, False), 16, False),
        ("hello;12+7=19;19-3=16", (False, True, True), 16, True),
        ("", (), None, False),
        (";;;", (), None, False),
    ],
)
def test_judge_chain(think, valid, implied, complete):
    verdict = judge(think, CHAIN, None)
    assert (verdict.valid, verdict.implied, verdict.complete) == (valid, implied, complete)


@pytest.mark.parametrize(
    ("think", "valid", "complete"),
    [
        ("8-3=5;5+2=7", (True, True), True),
        ("2+8=10;10-3=7", (True, True), True),
        ("8-3=5;5+3=8", (True, False), False),
        ("8-1=7", (False,), False),
        ("8-3=4;4+2=6", (False, True), True),
    ],
)
def test_judge_countdown(think, valid, complete):
    verdict = judge(think, "", (2, 3, 8))
    assert (verdict.valid, verdict.complete) == (valid, complete)


def test_negative_running_values():
    assert judge("3-8=-5;-5+4=-1", "3-8+4", None).valid == (True, True)
    assert read_step("-5+4=-1") == (-5, [("+", 4)], -1)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')=1",
        "9**9**9=1",
        "1+1=2=3",
        "1+1=two",
        "(1+1)=2",
        "1+" * 999 + "1=2",
        "1" * 99 + "+1=2",
    ],
)
def test_hostile_steps_are_invalid_not_evaluated(text):
    assert judge(text, CHAIN, None).valid == (False,)


def test_consistency_needs_a_trace_that_arrives_at_the_answer():
    def consistent(text, numbers=None):
        return assess(text, CHAIN, numbers).consistent

    assert consistent("<think>12+7=19;19-3=15</think><answer>15</answer>")
    assert not consistent("<think>12+7=19;19-3=15</think><answer>16</answer>")
    assert not consistent("<think></think><answer>16</answer>")
    assert not consistent("<think>12+7=19;19-3=16</think>")
    assert consistent("<think>8-3=5;5+2=7</think><answer>8-3+2</answer>", (2, 3, 8))


def table_of(*completions: str) -> Table:
    tokenizer = vocabulary.build_tokenizer()
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in completions]
    width = max(map(len, ids))
    tokens, mask = (
        torch.zeros(len(ids), width, dtype=torch.long),
        torch.zeros(len(ids), width, dtype=torch.bool),
    )
    for row, values in enumerate(ids):
        tokens[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = True
    return Table.of({"tokens": ("b s", tokens), "mask": ("b s", mask)}, {"completion": list(completions)})


def parts(table: Table, row: int) -> tuple[list[str], str]:
    """Return the text of each segment and of the answer span of a row."""
    pieces = list(vocabulary.VOCABULARY)
    tokens, segment = table["tokens"][row].tolist(), table["segment"][row].tolist()
    count = int(table["turn"][row].sum())
    texts = ["".join(pieces[t] for t, s in zip(tokens, segment, strict=True) if s == n) for n in range(count)]
    answer = "".join(
        pieces[t] for t, inside in zip(tokens, table["answer_span"][row].tolist(), strict=True) if inside
    )
    return texts, answer


@pytest.mark.parametrize(
    ("completion", "steps", "answer"),
    [
        ("<think>12+7=19;19-3=16</think><answer>16</answer>", ["12+7=19;", "19-3=16"], "16"),
        ("12+7=19;19-3=16<answer>16</answer>", ["12+7=19;", "19-3=16"], "16"),
        ("<think>12+7=19;19-3=16<answer>-6", ["12+7=19;", "19-3=16"], "-6"),
        ("<think>;;12+7=19;;</think><answer></answer>", ["12+7=19;"], ""),
        (
            "<think>12+7=19 ; check 19</think><answer>1</answer><answer>2</answer>",
            ["12+7=19 ;", "check 19"],
            "2",
        ),
        ("<think></think><answer>5</answer>", [], "5"),
        ("<answer>5</answer><think>2+3=5</think>", ["2+3=5"], "5"),
        ("</think></think>", [], ""),
        ("", [], ""),
    ],
)
def test_segments_and_answer_span(completion, steps, answer):
    table = columns.annotate(table_of("<think>1+1=2;2+1=3;3+1=4</think><answer>4</answer>", completion))
    assert parts(table, 1) == (steps, answer)
    assert parts(table, 0) == (["1+1=2;", "2+1=3;", "3+1=4"], "4")
    assert table["turn"].shape == (2, 3)


def test_segments_agree_with_the_judged_steps():
    text = "<think>12+7-3;12+7=19;19-3=16;check 19-3=16;</think><answer>16</answer>"
    table = columns.annotate(table_of(text))
    assert int(table["turn"].sum()) == len(assess(text, CHAIN, None).verdict.valid) == 4


def test_masked_and_empty_rows_have_no_columns():
    table = table_of("<think>1+1=2</think><answer>2</answer>")
    table = columns.annotate(table.with_columns({"mask": ("b s", torch.zeros_like(table["mask"]))}))
    assert int(table["segment"].max()) == -1
    assert not table["answer_span"].any()
    assert table["turn"].shape == (1, 0)


def test_answer_ids_are_classes_of_the_normalised_answer():
    texts = [
        "<answer>7</answer>",
        "<answer>+07",
        "<answer>8-1</answer>",
        "<answer>seven</answer>",
        "no answer",
        "<answer></answer>",
    ]
    first = columns.annotate(table_of(*texts))["answer_id"].tolist()
    assert first[0] == first[1] > 0
    assert first[2] not in (0, first[0])
    assert first[3:] == [0, 0, 0]
    assert columns.annotate(table_of(*reversed(texts)))["answer_id"].tolist() == first[::-1]
