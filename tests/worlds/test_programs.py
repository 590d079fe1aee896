"""The programs world: language, problems, tasks, rewards, columns, oracle and meters."""

import math
import pickle
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import concordant.worlds as worlds
from concordant.core.errors import ConfigError, DataError
from concordant.core.table import Table
from concordant.worlds.lm_programs import ProgramsConfig, ProgramsWorld, language, problems, vocabulary
from concordant.worlds.lm_programs.judging import pad, passed
from concordant.worlds.lm_programs.problems import DOMAIN, Problem, Program
from concordant.worlds.lm_programs.world import BASE, make_task

WORLD = ProgramsWorld()
NAN = math.nan
LIMB = Program(("x", "7", "-", "x", "2", "*", "x", "3", "+", "if"))  # 2x above 7, else x + 3


def drawn(seed, height=3, *, branchy=True):
    return problems.draw(Random(seed), height, branchy=branchy, test=height == 3 and seed % 2 == 0)


# ---- language ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("x", (-3, 0, 9)),
        ("7", (7, 7, 7)),
        ("x 2 //", (-2, 0, 4)),  # floors, like Python
        ("x 4 %", (1, 0, 1)),
        ("9 x %", (0, None, 0)),  # -3 * -3; no remainder by zero
        ("x 5 min", (-3, 0, 5)),
        ("x 5 max", (5, 5, 9)),
        ("x 1 2 if", (2, 2, 1)),  # zero does not count as true
        ("x 5 x // 1 if", (1, 1, 0)),  # the side not taken may fail
        ("5 x // 1 2 if", (2, None, 2)),  # a test that fails fails the whole
        ("x x *", (9, 0, 81)),
        ("x x * x * x * x * x * x *", (-2187, 0, None)),  # 9 ** 7 is out of bounds
        ("x +", (None, None, None)),
        ("x 3", (None, None, None)),
        ("x 10 +", (None, None, None)),  # constants have one digit
        ("", (None, None, None)),
        ("x " * 70, (None, None, None)),
    ],
)
def test_programs_are_executed_by_the_rules(text, want):
    assert language.run(text, (-3, 0, 9)) == want


def test_a_long_program_is_refused_by_the_step_limit():
    fits = "x" + " 1 +" * ((language.STEPS - 1) // 2)
    assert language.run(fits, [0]) == ((language.STEPS - 1) // 2,)
    assert language.run(fits + " 1 +", [0]) == (None,)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.booleans())
def test_postfix_and_python_agree_on_every_input(seed, height, branchy):
    program = drawn(seed, height, branchy=branchy)
    expression = compile(str(language.to_python(program.text)), "program", "eval")
    allowed = {"__builtins__": {}, "min": min, "max": max}
    assert tuple(eval(expression, allowed, {"x": x}) for x in DOMAIN) == program.outputs


def test_python_text_of_every_operator():
    assert language.to_python("x 3 + 2 //") == "( x + 3 ) // 2"
    assert language.to_python("1 x 2 - x 3 if -") == "1 - ( x if x - 2 > 0 else 3 )"
    assert language.to_python("x 2 - 1 x if 4 5 if") == "4 if ( 1 if x - 2 > 0 else x ) > 0 else 5"
    assert language.to_python("x +") is None


def test_sides_name_the_path_of_every_input():
    assert language.sides(["x", "2", "-", "x", "1", "min", "x", "if"], [0, 1, 2, 3]) == [
        (True, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert language.sides(["x", "3", "+"], [0, 1]) == [(), ()]


# ---- problems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branchy", [True, False])
@pytest.mark.parametrize("height", [2, 3])
def test_hidden_programs_are_what_they_say(height, branchy):
    for seed in range(60):
        program = drawn(seed, height, branchy=branchy)
        assert language.depth(program.tokens) == height
        assert len(program.tokens) <= problems.LENGTH
        assert len(program.outputs) == len(DOMAIN)
        assert max(map(abs, program.outputs)) <= problems.LARGEST
        assert len(set(program.outputs)) > 1
        assert all(program.common) is not branchy
        assert program.is_test == (height == 3 and seed % 2 == 0)


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("x 7 - x 2 * x 3 + if", True),
        ("x 1 *", False),  # idle
        ("x x -", False),  # constant
        ("3 x - x 9 + 3 + x if", True),
        ("x 9 - x 9 - x if", True),
        ("x 1 + x 3 if", False),  # the test never fails
        ("x 9 *", False),  # too large
        ("9 x //", False),  # undefined at 0
        ("x 1 + 1 + 1 + 1 + 1 +", False),  # too long
    ],
)
def test_soundness(text, sound):
    assert problems.is_sound(text.split()) is sound


def test_examples_show_every_path_and_tests_are_other_inputs():
    for seed in range(40):
        program, rng = drawn(seed), Random(seed)
        problem = problems.pose(program, rng, pairs=5, tests=16, flat=12)
        paths = language.sides(program.tokens, DOMAIN)
        assert {paths[x] for x in problem.shown} == set(paths)
        assert sorted(problem.shown) == list(problem.shown)
        assert len({*problem.shown, *problem.tested}) == 21
        assert len(set(problem.flat)) == len(problem.flat) <= 12
        assert all(program.common[x] for x in problem.flat)
        assert set(problem.flat).isdisjoint(problem.shown)


# ---- world ---------------------------------------------------------------------------------------------------------


def test_lookup_and_options():
    assert "lm/programs" in worlds.names()
    assert len(worlds.get("lm/programs", {"tests": 24}).tasks("train", count=1)[0].fields["suite"]) == 24
    with pytest.raises(ConfigError, match="did you mean 'flat_tests'"):
        worlds.get("lm/programs", {"flat_test": 3})
    with pytest.raises(ConfigError, match="did you mean 'postfix'"):
        ProgramsConfig(language="posfix")
    with pytest.raises(ConfigError, match="pairs \\+ tests at most 30"):
        ProgramsConfig(pairs=7, tests=24)


def test_validate_finds_nothing_and_finds_a_wrong_test(monkeypatch):
    assert WORLD.validate() == []

    def spoil(problem, spoken):
        task = make_task(problem, spoken)
        task.fields["suite"][3] = (task.fields["suite"][3][0], 1000)
        return task

    monkeypatch.setattr("concordant.worlds.lm_programs.world.make_task", spoil)
    assert "does not pass its suite" in WORLD.validate()[0]


def test_splits_are_disjoint_and_draws_are_addressed():
    test = WORLD.tasks("test", count=512)
    train = [task for step in range(30) for task in WORLD.tasks("train", 3, step, 30)]
    assert {t.fields["function"] for t in test}.isdisjoint(t.fields["function"] for t in train)
    assert len({t.id for t in test}) == 512
    assert test[:13] == WORLD.tasks("test", seed=9, step=9, count=13)
    assert WORLD.tasks("train", 3, 5, 8) == WORLD.tasks("train", 3, 5, 20)[:8]
    assert WORLD.tasks("train", 3, 5, 8) != WORLD.tasks("train", 3, 6, 8)
    assert len({tuple(task.fields) for task in (*test, *train)}) == 1
    with pytest.raises(ConfigError, match="test_prompts"):
        WORLD.tasks("test", count=513)


def test_most_tests_of_a_suite_lie_on_the_common_path():
    common = [flag for task in WORLD.tasks("test", count=200) for flag in task.fields["common"]]
    assert 0.7 < sum(common) / len(common) < 0.9


def test_tokenizer_round_trip_and_chat_template():
    shipped = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(BASE)
    python = ProgramsWorld(ProgramsConfig(language="python"))
    for tokenizer in (vocabulary.build_tokenizer(), shipped):
        for world in (WORLD, python):
            for task in world.tasks("test", count=40):
                for text in (task.fields["question"], task.fields["reference"]):
                    ids = tokenizer(text)["input_ids"]
                    assert tokenizer.decode(ids) == text
                    assert tokenizer.unk_token_id not in ids
                    assert len(ids) == len(text.split())
                assert len(ids) < world.max_new_tokens
                assert len(ids) + len(task.fields["question"].split()) + 3 <= vocabulary.WINDOW
        text = tokenizer.apply_chat_template(task.prompt, add_generation_prompt=True, tokenize=False)
        assert text == f"<|user|>{task.fields['question']}<|assistant|>"
        assert tokenizer(text)["input_ids"][0] == vocabulary.VOCABULARY[vocabulary.USER]
        assert tokenizer.eos_token == "<|end|>"
        assert tokenizer.pad_token_id == 0


def test_base_loads_within_its_limits():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    assert 0.9e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 1.6e6
    assert (BASE / "model.safetensors").stat().st_size <= 4e6
    assert model.config.vocab_size == len(vocabulary.VOCABULARY)
    assert model.generation_config.eos_token_id == vocabulary.VOCABULARY[vocabulary.END]


@pytest.mark.sandbox
def test_python_programs_run_in_the_sandbox_and_agree_with_postfix():
    world = ProgramsWorld(ProgramsConfig(language="python"))
    tasks = world.tasks("test", count=6)
    assert [task.fields["suite"] for task in tasks] == [
        task.fields["suite"] for task in WORLD.tasks("test", count=6)
    ]
    assert tasks[0].prompt[0]["content"].startswith("python ")
    wrong = [*TEXTS[:3], "5 x //"]  # the last one fails at 0
    suite = [(0, 3), (2, 5), (12, 24)]
    texts = [str(language.to_python(text)) for text in wrong]
    assert world.judge.passed(texts, [suite] * 4) == WORLD.judge.passed(wrong, [suite] * 4)
    hostile = ["x +", "__import__('os')._exit(0)", "exit(0)", "open('/etc/passwd').read()", "str(3)"]
    assert world.judge.passed(hostile, [suite] * 5) == [(0.0, 0.0, 0.0)] * 5
    assert [world.judge.is_program(text) for text in (*texts, "x +", "(" * 999)] == [True] * 4 + [False] * 2
    fields = tasks[0].fields
    assert world.rewards["solved"](fields["reference"], fields["suite"]) == 1.0


# ---- rewards, columns, oracle --------------------------------------------------------------------------------------


def table_of(texts, problem=None):
    """A group of completions for one problem: shown 1 5 8 20 29, tested 2 9 (common) 12 7 (7 is not)."""
    problem = problem or Problem(LIMB, (1, 5, 8, 20, 29), (2, 9, 12, 7), (9, 12, 15))
    task = make_task(problem, "postfix")
    fields = {name: [value] * len(texts) for name, value in task.fields.items()}
    columns = {"group": ("b", torch.full((len(texts),), 3))}
    return WORLD.annotate(Table.of(columns, {**fields, "completion": texts}))


TEXTS = ["x 7 - x 2 * x 3 + if", "x 2 *", "x 3 +", "x x"]


def test_rewards_and_columns_by_hand():
    table = table_of(TEXTS)
    assert table["tests"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert table["flat_tests"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert {name: table.axes(name) for name in WORLD.columns} == {
        name: tuple(axes.split()) for name, axes in WORLD.columns.items()
    }
    suite = table.fields["suite"][0]
    assert [WORLD.rewards["solved"](text, suite) for text in TEXTS] == [1.0, 0.0, 0.0, 0.0]
    assert [WORLD.rewards["pass_rate"](text, suite) for text in TEXTS] == [1.0, 0.5, 0.5, 0.0]
    assert pickle.loads(pickle.dumps(WORLD.rewards["solved"]))("x", [(3, 3)]) == 1.0


def test_a_task_without_tests_is_refused_and_suites_of_different_size_are_padded():
    with pytest.raises(DataError, match="no test"):
        passed("x", [])
    with pytest.raises(DataError, match=r"the task '1 4 ; 5 8 ; .*' has no test"):
        table_of(["x"], Problem(LIMB, (1, 5, 8, 20, 29), (), (9,)))
    got = pad([(1.0,), None, (0.0, 1.0)], [[(0, 0)], [(0, 0), (1, 1)], [(0, 0), (1, 1)]])
    torch.testing.assert_close(got, torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0]]), equal_nan=True)


def test_oracle_and_meters_by_hand():
    table = table_of(TEXTS)
    judged = WORLD.evaluate(table)
    assert judged == {
        "accuracy": [1.0, 0.0, 0.0, 0.0],
        "pass_rate": [1.0, 0.5, 0.5, 0.0],
        "valid": [1.0, 1.0, 1.0, 0.0],
        "tied": [0.0] * 4,
        "rare": [1.0, 0.0, 1.0, 0.0],
    }
    meters = WORLD.meters(table)
    assert meters["common_tests"] == 0.5
    assert meters["easy_share"] == 0.5
    assert meters["skew"] == 0.0
    assert (meters["tied_groups"], meters["never_solved"], meters["always_solved"]) == (0.0, 0.0, 0.0)
    failing = WORLD.meters(table_of(["x 2 *", "x 2 *", "x x"]))
    assert (failing["tied_groups"], failing["never_solved"]) == (1.0, 1.0)
    assert failing["skew"] == pytest.approx(2 / 3)
    assert failing["easy_share"] == 1.0
    assert math.isnan(WORLD.meters(table_of(["x x"]))["easy_share"])
