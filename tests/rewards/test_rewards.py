"""Reward functions on hand-made completions, and the number reader on hostile text."""

import pickle

import pytest

from concordant.rewards import (
    Short,
    answer_text,
    correct,
    normalise_answer,
    read_expression,
    read_integer,
    tag_format,
    think_text,
    written_length,
)

GOOD = "<think>12+7=19;19-3=16</think><answer>16</answer>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        (" -7 ", -7),
        ("+003", 3),
        ("- 4", -4),
        ("0", 0),
        ("-0", 0),
        ("", None),
        ("1 2", None),
        ("1.0", None),
        ("1e3", None),
        ("0x10", None),
        ("٣", None),
        ("1_000", None),
        ("--3", None),
        ("9" * 10, None),
        ("0" * 20 + "5", 5),
        ("9" * 100_000, None),
    ],
)
def test_read_integer(text, value):
    assert read_integer(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12+7-3", (16, [12, 7, 3])),
        ("(2+3)*4", (20, [2, 3, 4])),
        ("2+3*4", (14, [2, 3, 4])),
        ("-3+5", (2, [3, 5])),
        ("2*-3", (-6, [2, 3])),
        ("8", (8, [8])),
        (" 1 + 1 ", (2, [1, 1])),
    ],
)
def test_read_expression(text, value):
    assert read_expression(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "1+",
        "(1",
        "1)",
        "()",
        "2**9",
        "9**9**9",
        "7/2",
        "1,2",
        "a+1",
        "__import__('os')",
        "1 if 1 else 2",
        "1;2",
        "1=1",
        "(" * 100_000,
        "-" * 60 + "1",
        "1+" * 100_000 + "1",
        "999999999*999999999*999999999",
        "1" * 50,
        "\uff11+\uff11",
        "1\x002",
        "lambda: 1",
    ],
)
def test_read_expression_refuses(text):
    assert read_expression(text) is None


@pytest.mark.parametrize(
    ("completion", "think", "answer", "layout"),
    [
        (GOOD, "12+7=19;19-3=16", "16", 1.0),
        ("<think></think><answer>16</answer>", "", "16", 1.0),
        (" <think>a</think>\n<answer>16</answer>\n", "a", "16", 1.0),
        ("1+1=2<answer>2</answer>", "1+1=2", "2", 0.0),
        ("<think>1+1=2<answer>2</answer>", "1+1=2", "2", 0.0),
        ("<think>1+1=2</think><answer>2", "1+1=2", "2", 0.0),
        ("<think>1</think><answer>1</answer><answer>2</answer>", "1", "2", 0.0),
        ("<answer>2</answer><think>1+1=2</think>", "1+1=2", "2", 0.0),
        ("<think>a</think><think>b</think><answer>2</answer>", "a", "2", 0.0),
        ("<think>a</think>x<answer>2</answer>", "a", "2", 0.0),
        ("<think>1+1=2</think>2", "1+1=2", None, 0.0),
        ("</answer><answer></think>", "", "", 0.0),
        ("", "", None, 0.0),
    ],
)
def test_blocks(completion, think, answer, layout):
    assert think_text(completion) == think
    assert answer_text(completion) == answer
    assert tag_format(completion) == layout


def test_correct_integer():
    assert correct(GOOD, "16") == 1.0
    assert correct(GOOD.replace(">16<", "> +016 <"), "16") == 1.0
    assert correct(GOOD, "17") == 0.0
    assert correct("<answer>12+4</answer>", "16") == 0.0, "a chain must be computed, not copied"
    assert correct("16", "16") == 0.0
    assert correct("", "16") == 0.0


def test_correct_countdown_uses_each_number_once():
    def judge(text):
        return correct(f"<answer>{text}</answer>", "7", numbers=(2, 3, 8))

    assert judge("8-3+2") == judge("2+(8-3)") == 1.0
    assert judge("7") == judge("8-1") == judge("8-3+2+0") == judge("8+3+2") == judge("8-3+2=7") == 0.0


def test_normalise_answer():
    assert normalise_answer(" 016") == normalise_answer("16") == "16"
    assert normalise_answer("-0") == "0"
    assert normalise_answer("8 - 3") == "8-3"
    assert normalise_answer("sixteen") is None
    assert normalise_answer(None) is None


def test_short_ignores_tags_and_spaces():
    assert written_length(GOOD) == written_length(GOOD.replace("<think>", "")) == 17
    assert Short(17)(GOOD) == 1.0
    assert Short(16)(GOOD) == 0.0
    assert Short(0)("") == 1.0


def test_rewards_pickle_to_a_worker():
    for reward in (correct, tag_format, Short(12)):
        assert pickle.loads(pickle.dumps(reward)) == reward
