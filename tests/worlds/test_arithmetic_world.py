"""The arithmetic world: tasks, splits, tokenizer, base, scorer, hints and meters."""

import json
import math
import pickle

import pytest
import torch

import concordant.worlds as worlds
from concordant.core.errors import ConfigError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.policies import LMPolicy, SamplePlan
from concordant.worlds.base import Task
from concordant.worlds.lm_arithmetic import (
    EASY,
    HARD,
    LEVELS,
    MIX,
    ArithmeticConfig,
    ArithmeticWorld,
    columns,
    vocabulary,
)
from concordant.worlds.lm_arithmetic.problems import Problem, draw, solve_countdown, steps, word
from concordant.worlds.lm_arithmetic.world import BASE, make_task, rows_of

WORLD = ArithmeticWorld()
SUM = Problem("3x2", (12, 47, 33), ("+", "-"))


def test_lookup_by_name():
    assert "lm/arithmetic" in worlds.names()
    assert worlds.get("lm/arithmetic", {"levels": HARD}).config.levels == HARD
    with pytest.raises(ConfigError, match="did you mean 'lm/arithmetic'"):
        worlds.get("lm/arithmetics")
    with pytest.raises(ConfigError, match="did you mean 'levels'"):
        worlds.get("lm/arithmetic", {"level": HARD})
    with pytest.raises(ConfigError, match="did you mean '3x2'"):
        ArithmeticConfig(levels=("3x22",))


def test_validate_finds_nothing_and_finds_a_wrong_key(monkeypatch):
    assert WORLD.validate() == []

    def spoil(problem, question):
        task = make_task(problem, question)
        return Task(task.id, task.prompt, {**task.fields, "answer": "31415"})

    monkeypatch.setattr("concordant.worlds.lm_arithmetic.world.make_task", spoil)
    assert "not rewarded" in WORLD.validate()[0]


def test_splits_are_disjoint_and_draws_are_addressed():
    test = WORLD.tasks("test", count=512)
    train = [task for step in range(40) for task in WORLD.tasks("train", 3, step, 39)]
    assert {t.fields["problem"] for t in test}.isdisjoint(t.fields["problem"] for t in train)
    assert len({t.id for t in test}) == 512
    assert test[:13] == WORLD.tasks("test", seed=9, step=9, count=13)
    assert WORLD.tasks("train", 3, 5, 8) == WORLD.tasks("train", 3, 5, 20)[:8]
    assert WORLD.tasks("train", 3, 5, 8) != WORLD.tasks("train", 3, 6, 8)
    counts = {level: sum(t.fields["level"] == level for t in test) for level in LEVELS}
    assert counts == {level: 32 * MIX.count(level) for level in LEVELS}
    with pytest.raises(ConfigError, match="test_prompts"):
        WORLD.tasks("test", count=513)


def test_levels_select_tasks():
    world = ArithmeticWorld(ArithmeticConfig(levels=HARD))
    assert {t.fields["level"] for t in world.tasks("test", count=30)} == set(HARD)
    assert {t.fields["level"] for t in world.tasks("train", count=30)} == set(HARD)


def test_all_tasks_have_the_same_fields_and_chat_prompts():
    tasks = WORLD.tasks("test", count=26)
    assert len({tuple(task.fields) for task in tasks}) == 1
    assert all(task.prompt == [{"role": "user", "content": task.fields["question"]}] for task in tasks)


def test_wordings_and_reference():
    assert [word(SUM, form) for form in range(4)] == [
        "12+47-33=?",
        "12 + 47 - 33",
        "sum 12 +47 -33",
        "12+47-33",
    ]
    assert steps(SUM) == ["12+47=59", "59-33=26"]
    game = solve_countdown((5, 2, 3), 21)
    assert game is not None
    assert (game.target, sorted(game.numbers)) == (21, [2, 3, 5])
    assert word(game, 0) == "make 21 from 5 2 3"
    assert Problem("countdown", (2, 3, 4), ("+", "*")).expression == "(2+3)*4"
    assert solve_countdown((1, 1, 1), 40) is None


@pytest.mark.parametrize("level", LEVELS)
def test_levels_are_what_they_say(level):
    problem = draw(level, 7, test=True)
    assert problem.is_test
    if level != "countdown":
        terms, digits = level.split("x")
        assert len(problem.numbers) == int(terms)
        assert {len(str(number)) for number in problem.numbers} == {int(digits)}


def test_tokenizer_round_trip_and_chat_template():
    shipped = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(BASE)
    for tokenizer in (vocabulary.build_tokenizer(), shipped):
        for task in WORLD.tasks("test", count=52):
            for text in (
                task.fields["question"],
                task.fields["reference"],
                WORLD.hint_prompt(task),
            ):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.decode(ids) == text
                assert tokenizer.unk_token_id not in ids
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "1+1"}], add_generation_prompt=True, tokenize=False
        )
        assert text == "<|user|>1+1<|assistant|>"
        ids = tokenizer(text + "<think>")["input_ids"]
        assert [tokenizer.decode([i]) for i in ids] == ["<|user|>", "1", "+", "1", "<|assistant|>", "<think>"]
        assert tokenizer.eos_token == "<|end|>"
        assert tokenizer.pad_token_id == 0
        assert tokenizer.unk_token_id in tokenizer("what? è")["input_ids"]


def test_reference_completions_fit():
    tokenizer = vocabulary.build_tokenizer()
    lengths = [len(tokenizer(t.fields["reference"])["input_ids"]) + 1 for t in WORLD.tasks("test", count=260)]
    assert max(lengths) <= WORLD.max_new_tokens


def test_base_loads_within_its_limits():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert 0.9e6 <= size <= 1.6e6
    assert (BASE / "model.safetensors").stat().st_size <= 4e6
    assert model.config.vocab_size == len(vocabulary.VOCABULARY)
    assert model.generation_config.eos_token_id == vocabulary.VOCABULARY[vocabulary.END]


def test_sampling_and_scoring_differ_by_no_more_than_float32_rounding():
    """On this base the worst of some thousand tokens is 1e-5 to 2e-5 apart; so is either from a float64 pass."""
    policy = LMPolicy.from_pretrained(BASE)
    table = policy.sample(WORLD.tasks("train", 0, 0, 16), SamplePlan(8, 56), Rng(0))
    used, sampled, scored = table["mask"], table["logp"], policy.score(table)
    policy.model.double()
    exact = policy.score(table)
    difference, rounding = (scored - sampled).abs()[used], (scored - exact).abs()[used]
    assert difference.quantile(0.99) < 1e-5
    assert difference.max() <= 2 * rounding.max() < 1e-4


def sampled_table() -> Table:
    """Two prompts and five completions, with prompt columns, as a policy would return them."""
    tasks = [make_task(SUM, "12+47-33=?"), make_task(Problem("2x1", (3, 4), ("+",)), "3+4")]
    texts = [
        [
            "<think>12+47=59;59-33=26</think><answer>26</answer>",  # sound
            "<think>12+47=58;59-33=26</think><answer>26</answer>",  # flawed positive
            "<think>12+47=58;58-33=25</think><answer>26</answer>",  # right, not implied by the trace, flawed
        ],
        ["<think>3+4=8</think><answer>8</answer>", "3+4=8<answer>8"],
    ]
    tokenizer = vocabulary.build_tokenizer()
    fields = rows_of(tasks, texts)
    body = tokenizer(fields["completion"], padding=True, padding_side="right", return_tensors="pt")
    prompt = tokenizer(fields["question"], padding=True, return_tensors="pt")
    table = Table.of(
        {
            "group": ("b", torch.tensor([5, 5, 5, 9, 9])),
            "tokens": ("b s", body["input_ids"]),
            "mask": ("b s", body["attention_mask"].bool()),
            "prompt_tokens": ("b q", prompt["input_ids"]),
            "prompt_mask": ("b q", prompt["attention_mask"].bool()),
        },
        fields,
    )
    return columns.annotate(table)


def test_oracle_and_meters_on_a_hand_made_table():
    table = sampled_table()
    judged = WORLD.evaluate(table)
    assert judged["accuracy"] == [1, 1, 1, 0, 0]
    assert judged["steps_valid"] == [1, 0, 0, 0, 0]
    assert judged["consistent"] == [1, 1, 0, 1, 1]
    assert judged["sound"] == [1, 0, 0, 0, 0]
    assert judged["format"] == [1, 1, 1, 1, 0]
    assert judged["length"] == [19, 19, 19, 6, 6]
    found = WORLD.meters(table)
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["tied_groups"] == 1.0
    assert found["never_solved"] == found["always_solved"] == 0.5
    assert found["flawed_positives"] == pytest.approx(2 / 3)
    assert found["inconsistent"] == pytest.approx(1 / 5)
    assert found["inconsistent_positives"] == pytest.approx(1 / 3)
    assert found["easy"] == 0.0
    assert math.isnan(found["hard"])
    assert (found["spread_correct"], found["spread_format"], found["spread_short"]) == (0.0, 0.25, 0.0)


def test_step_scorer_scores_steps_and_nothing_else():
    table = sampled_table()
    scorer = WORLD.step_scorer()
    scores = scorer.score(table)
    assert scores.shape == table["turn"].shape
    assert torch.equal(~scores.isnan(), table["turn"])
    assert ((scores >= 0) & (scores <= 1))[table["turn"]].all()
    assert torch.equal(WORLD.scorers["step_score"](table).nan_to_num(), scores.nan_to_num())
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(scorer.score(table.take(order)), scores[order], equal_nan=True)
    wider = Table.concat([table.take(torch.tensor([3])), table.take(torch.tensor([0]))])
    torch.testing.assert_close(scorer.score(wider)[1], scores[0], equal_nan=True)
    assert (BASE / "scorer.safetensors").stat().st_size <= 6e5
    assert 0.6 <= json.loads((BASE / "scorer.json").read_text())["held_out_auc"] <= 0.97


def test_hints():
    task = make_task(Problem("5x1", (1, 2, 3, 4, 5), ("+", "+", "-", "+")), "1+2+3-4+5")
    assert WORLD.hint_prompt(task) == "hint 1+2+3-4+5 solution 1+2=3;3+3=6;6-4=2;2+5=7"
    hints = WORLD.parse_hints("1:3|2:3 6|3:3 6 2")
    assert hints == {1: "3", 2: "3 6", 3: "3 6 2"}
    assert not any(WORLD.hint_leaks(hint, task.fields["answer"]) for hint in hints.values())
    assert WORLD.hint_leaks("3 6 2 7", "7")
    assert WORLD.parse_hints("1:3|rubbish|2:|3:x|9:4") == {1: "3"}
    assert WORLD.parse_hints("<think>1+2=3</think>") is None
    hinted = WORLD.hinted_task(task, hints[2])
    assert hinted.prompt[0]["content"] == "1+2+3-4+5 hint 3 6"
    assert (hinted.id, hinted.fields) == (task.id, task.fields)


def test_world_and_tasks_pickle():
    world = worlds.get("lm/arithmetic", {"short_limit": 9})
    assert pickle.loads(pickle.dumps(world)) == world
    tasks = world.tasks("train", 0, 0, 5)
    assert pickle.loads(pickle.dumps(tasks)) == tasks


def test_easy_and_hard_are_levels():
    assert set(EASY) | set(HARD) < set(LEVELS)
    assert not set(EASY) & set(HARD)
