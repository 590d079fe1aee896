"""One's own model, data and rewards, from training to the explanation of a rollout's credit."""

import json

import pytest

SHORT = ("--profile", "smoke", "--set", "train.max_new_tokens=8", "--set", "train.group_size=2")


@pytest.mark.parametrize("model", ["my-model", "my-qwen"])
def test_run_explain_report(call, own, own_arguments, tmp_path, model):
    words = [own / model if word == own / "my-model" else word for word in own_arguments]
    ended = call("run", "gdpo", *words, *SHORT, "--out", tmp_path, "--json")
    assert ended.exit_code == 0, ended.output
    summary = json.loads(ended.stdout)
    assert summary["slug"] == "gdpo"
    assert {"reward/correct", "reward/brief"} <= summary["metrics"].keys()
    run = tmp_path / "gdpo" / "gdpo" / "seed0"
    for name in ("config.json", "metrics.jsonl", "summary.json", "rollouts.parquet", "origin.json"):
        assert (run / name).stat().st_size > 0

    told = json.loads(call("explain", run, "--rollout", 1, "--json").stdout)
    assert [step["stage"] for step in told["steps"]] == ["z", "total", "whitened", "advantage"]
    assert told["steps"][0]["inputs"].keys() >= {"correct", "brief"}
    assert told["rollout"]["prompt"].startswith("What is")
    assert "group_zscore" in call("explain", run).stdout

    page = json.loads(call("report", run, "--json").stdout)["report"]
    assert "What is" in (run / "report.html").read_text()
    assert page == str((run / "report.html").resolve())


def test_a_finished_run_is_given_back_and_fresh_runs_again(call, own_arguments, tmp_path):
    words = ("run", "grpo", *own_arguments, *SHORT, "--set", "train.steps=1", "--out", tmp_path, "--json")
    first = json.loads(call(*words).stdout)
    summary = tmp_path / "grpo" / "grpo" / "seed0" / "summary.json"
    written = summary.stat().st_mtime_ns
    assert json.loads(call(*words).stdout) == first
    assert summary.stat().st_mtime_ns == written
    other = call(*words, "--set", "train.lr=1e-5")
    assert other.exit_code == 2
    assert "--fresh" in other.stderr
    assert json.loads(call(*words, "--fresh").stdout)["metrics"] == first["metrics"]
    assert summary.stat().st_mtime_ns != written


def test_a_reward_in_the_style_of_trl(call, own, own_arguments, tmp_path):
    reward = f"{own / 'my_rewards.py'}:digits"
    ended = call("run", "gdpo", *own_arguments, "--reward", reward, *SHORT, "--out", tmp_path, "--json")
    assert ended.exit_code == 0, ended.output
    assert "reward/digits" in json.loads(ended.stdout)["metrics"]


def test_in_a_process_of_its_own_the_output_is_json_alone(shell, own_arguments, tmp_path):
    ended = shell("run", "gdpo", *own_arguments, *SHORT, "--out", tmp_path, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["seed"] == 0
