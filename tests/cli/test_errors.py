"""Wrong use: exit code 2, one paragraph that names the nearest, no traceback, nothing left behind."""

import json

import pytest

CASES = [
    (("show", "gdop"), "did you mean 'gdpo'"),
    (("compare", "gdop"), "did you mean 'gdpo'"),
    (("run", "gdpo", "--arm", "grop"), "did you mean 'grpo'"),
    (("run", "gdpo", "--profile", "smoek"), "did you mean 'smoke'"),
    (("run", "gdpo", "--set", "train.step=3"), "did you mean 'steps'"),
    (("run", "gdpo", "--set", "chain.zz.eps=3"), "did you mean 'z'"),
    (("run", "gdpo", "--set", "chain.z.epz=3"), "did you mean 'eps'"),
    (("run", "gdpo", "--set", "trian.steps=3"), "did you mean 'train'"),
    (("run", "gdpo", "--set", "train.steps=many"), "train.steps"),
    (("run", "gdpo", "--set", "train.steps"), "key=value"),
    (("run", "gdpo", "--set", "train.group_size=0"), "at least 1"),
    (("run", "gdpo", "--model", "m"), "--data, --reward is missing"),
    (("show", "gdpo", "--diff", "grop"), "did you mean 'grpo'"),
    (("compare", "gdpo", "--seeds", "2-0"), "write 0-2"),
    (("compare", "gdpo", "--arms", "gdpo,grop"), "did you mean 'grpo'"),
    (("compare", "gdpo", "--profile", "quik"), "did you mean 'quick'"),
    (("list", "--kind", "sistem"), "did you mean 'system'"),
    (("board", "--profile", "smoke"), "quick and full"),
    (("explain", "nowhere"), "not a run folder"),
    (("report", "nowhere"), "does not exist"),
]


@pytest.mark.parametrize(("words", "message"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_wrong_use(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    ended = call(*words)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert [*tmp_path.iterdir()] == []


def test_an_unknown_verb_names_the_nearest(call):
    ended = call("comprae")
    assert ended.exit_code == 2
    assert "compare" in ended.output


def test_debug_shows_the_traceback_wherever_it_stands(shell):
    for words in (("--debug", "show", "gdop"), ("show", "gdop", "--debug")):
        ended = shell(*words)
        assert ended.returncode == 2
        assert "Traceback" in ended.stderr
        assert "did you mean 'gdpo'" in ended.stderr


def test_a_fault_of_the_program_has_its_own_code(call, monkeypatch):
    from concordant import recipes

    monkeypatch.setattr(recipes, "slugs", lambda: 1 / 0)
    ended = call("list")
    assert ended.exit_code == 3
    assert "ZeroDivisionError" in ended.stderr
    assert "--debug" in ended.stderr


def test_an_interruption_says_that_it_can_go_on(call, monkeypatch):
    from concordant import recipes

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "slugs", interrupt)
    ended = call("list")
    assert ended.exit_code == 130
    assert "goes on where it stopped" in ended.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.jsonl", "", "at least 2"),
        ("broken.jsonl", '{"prompt": "a", "answer": "1"}\n{"prompt": "b", ', "line 2: not JSON"),
        (
            "other.jsonl",
            '{"prompt": "a", "answer": "1"}\n{"question": "b"}',
            "line 2: expected an object",
        ),
        ("uneven.jsonl", '{"prompt": "a", "answer": "1"}\n{"prompt": "b"}', "line 2: fields"),
    ],
)
def test_data_that_cannot_be_used_is_named_by_line(call, own, own_arguments, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    words = [*own_arguments]
    words[words.index(own / "prompts.jsonl")] = tmp_path / name
    ended = call("run", "gdpo", *words, "--profile", "smoke", "--out", tmp_path / "runs")
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert not (tmp_path / "runs" / "gdpo" / "gdpo" / "seed0" / "summary.json").exists()


def test_a_reward_that_is_not_there(call, own, own_arguments, tmp_path):
    ended = call(
        "run", "gdpo", *own_arguments, "--reward", f"{own / 'my_rewards.py'}:corect", "--out", tmp_path
    )
    assert ended.exit_code == 2
    assert "did you mean 'correct'" in ended.stderr


def test_an_unwritable_place(call, own_arguments, tmp_path):
    (tmp_path / "file").write_text("")
    ended = call("run", "gdpo", *own_arguments, "--profile", "smoke", "--out", tmp_path / "file")
    assert ended.exit_code == 2
    assert "--out" in ended.stderr


def test_fresh_does_not_delete_what_is_no_run(call, own_arguments, tmp_path):
    folder = tmp_path / "gdpo" / "gdpo" / "seed0"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    ended = call("run", "gdpo", *own_arguments, "--profile", "smoke", "--out", tmp_path, "--fresh")
    assert ended.exit_code == 2
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_a_result_that_is_cut_short(call, tmp_path):
    (tmp_path / "gdpo.json").write_text(json.dumps({"slug": "gdpo"}))
    ended = call("list", "--results", tmp_path)
    assert ended.exit_code == 2
    assert "gdpo.json" in ended.stderr
