"""Bring your own model, data and rewards: the right way works, every wrong way is named."""

import json
from pathlib import Path

import pytest
import torch

from concordant.core.errors import ConcordantError, ConfigError, DataError, RewardError
from concordant.experiment import build
from concordant.loops.train import train
from concordant.scoring.reward import load_reward
from concordant.worlds.user import UserConfig, UserWorld, read_jsonl
from tests.tiny import make_data, make_model


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


GOOD = json.dumps({"prompt": "1+2=", "answer": "3"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((GOOD, "{oops"), r"line 2: not JSON"),
        ((GOOD, "[1]"), r"line 2: expected an object with a `prompt`, got list"),
        (
            (GOOD, json.dumps({"answer": "3"})),
            r"line 2: expected an object with a `prompt`, got \['answer'\]",
        ),
        ((GOOD, json.dumps({"prompt": "", "answer": "3"})), r"line 2: `prompt` must be"),
        ((GOOD, json.dumps({"prompt": [{"role": "user"}], "answer": "3"})), r"line 2: `prompt` must be"),
        ((GOOD, json.dumps({"prompt": "x"})), r"line 2: fields \['prompt'\] differ"),
        ((), r"holds 0 prompts"),
        ((GOOD,), r"holds 1 prompts"),
    ],
)
def test_bad_data_names_the_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_jsonl(write(tmp_path / "d.jsonl", *lines))


def test_missing_files_and_functions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(RewardError, match=r"no file 'r.py'"):
        load_reward("r.py:f")
    with pytest.raises(RewardError, match="no file"):
        load_reward("correct")
    file = write(tmp_path / "r.py", "def correct(completion):", "    return 1.0")
    with pytest.raises(RewardError, match="did you mean 'correct'"):
        load_reward(f"{file}:corect")
    with pytest.raises(RewardError, match=r"importing .* failed: ModuleNotFoundError"):
        load_reward(f"{write(tmp_path / 'bad.py', 'import nothing_like_this')}:f")


def test_splits_are_disjoint_and_passes_are_reshuffled(tmp_path: Path) -> None:
    data, _ = make_data(tmp_path, 20)
    world = UserWorld(UserConfig(str(data)), "m", {})
    test = {task.prompt for task in world.tasks("test", count=99)}
    train_ = [task.prompt for step in range(6) for task in world.tasks("train", 0, step, 6)]
    assert len(test) == 2
    assert set(train_) == {f"{i}+{i + 1}=" for i in range(20)} - test
    assert train_[:18] != train_[18:]
    assert sorted(train_[:18]) == sorted(train_[18:])


def test_answers_are_compared_by_text(tmp_path: Path) -> None:
    from concordant.core.table import Table

    world = UserWorld(UserConfig(), "m", {})
    texts = ["<answer> 3 </answer>", "so \\boxed{3}", "<answer>4</answer>", "no idea"]
    ids = world.annotate(Table.of({"id": ("b", torch.arange(4))}, {"completion": texts}))[
        "answer_id"
    ].tolist()
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == 0
    with pytest.raises(ConfigError, match="no regular expression"):
        UserWorld(UserConfig(answer_pattern="("), "m", {})


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("slug", ["gdpo", "copo", "dapo"])
def test_a_users_model_trains(family: str, slug: str, tmp_path: Path) -> None:
    data, rewards = make_data(tmp_path)
    model = make_model(tmp_path / "model", family)
    e = build(slug, profile="smoke", model=str(model), data=data, sets=["train.max_new_tokens=8"],
              rewards=(f"{rewards}:digits", f"{rewards}:correct"))  # fmt: skip
    summary = train(e, tmp_path / "run")
    assert summary["cost"]["steps"] == 2
    assert set(summary["metrics"]) == {"reward/correct", "reward/digits", "length"}
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy").state_dict()
    assert any(not torch.equal(start[name], trained[name]) for name in start)


def test_methods_that_need_what_the_data_has_not_say_so(tmp_path: Path) -> None:
    data, rewards = make_data(tmp_path)
    own = {"model": "m", "data": data, "rewards": (f"{rewards}:correct",)}
    with pytest.raises(ConcordantError, match="no column 'turn'"):
        build("prof", **own)
    with pytest.raises(ConcordantError, match="no column 'answer_span'"):
        build("grpo-care", **own)
    with pytest.raises(ConfigError, match="'sage' needs hint_prompt"):
        build("sage", **own)
    with pytest.raises(ConfigError, match="all three"):
        build("gdpo", model="m")
    with pytest.raises(ConfigError, match="same name"):
        build("gdpo", model="m", data=data, rewards=(f"{rewards}:correct", f"{rewards}:correct"))
    with pytest.raises(ConfigError, match="only the method itself runs"):
        build("gdpo", arm="grpo", **own)


def test_prompts_longer_than_the_window_and_groups_of_one(tmp_path: Path) -> None:
    data, rewards = make_data(tmp_path)
    model = str(make_model(tmp_path / "model", window=16))
    own = {"model": model, "data": data, "rewards": (f"{rewards}:correct",), "profile": "smoke"}
    with pytest.raises(ConcordantError, match=r"window|positions"):
        train(build("grpo", sets=["train.max_new_tokens=14"], **own), tmp_path / "long")
    one = build("grpo", sets=["train.max_new_tokens=4", "train.group_size=1"], **own)
    summary = train(one, tmp_path / "one")
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert summary["cost"]["rollouts"] == 8
    assert [line["useful"] for line in lines] == [0.0, 0.0], "a group of one has no one to be compared with"
    assert [line["rows_forward"] for line in lines] == [0.0, 0.0]


def test_a_run_whose_rewards_always_tie_ends_with_the_weights_it_began_with(tmp_path: Path) -> None:
    data, _ = make_data(tmp_path)
    write(tmp_path / "r.py", "def same(completion):", "    return 0.35")
    e = build("grpo", profile="smoke", model=str(make_model(tmp_path / "model")), data=data,
              rewards=(f"{tmp_path / 'r.py'}:same",), sets=["train.max_new_tokens=4"])  # fmt: skip
    train(e, tmp_path / "run")
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy").state_dict()
    assert all(torch.equal(start[name], trained[name]) for name in start)


def test_reasons_of_missing_rewards_are_recorded(tmp_path: Path) -> None:
    data, _ = make_data(tmp_path)
    write(
        tmp_path / "r.py", "def odd(completion, answer):", "    return 1.0 if int(answer) % 4 == 1 else 1 / 0"
    )
    e = build("grpo", profile="smoke", model=str(make_model(tmp_path / "model")), data=data,
              rewards=(f"{tmp_path / 'r.py'}:odd",), sets=["train.max_new_tokens=4"])  # fmt: skip
    train(e, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(
        "odd: raised ZeroDivisionError: division by zero" in line.get("missing_reasons", {}) for line in lines
    )
    assert all(line["useful"] == 0.0 for line in lines), (
        "rows that are left tie, rows that are missing do not train"
    )


def test_a_broken_reward_stops_the_run_and_leaves_no_summary(tmp_path: Path) -> None:
    data, _ = make_data(tmp_path)
    write(tmp_path / "r.py", "def broken(completion):", "    return {}['x']")
    e = build("grpo", profile="smoke", model=str(make_model(tmp_path / "model")), data=data,
              rewards=(f"{tmp_path / 'r.py'}:broken",), sets=["train.max_new_tokens=4"])  # fmt: skip
    with pytest.raises(RewardError, match=r"failed on all .* KeyError"):
        train(e, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))
