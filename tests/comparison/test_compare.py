"""What a comparison runs, uses again, and writes where; training itself is replaced."""

import json

import pytest

from concordant import recipes
from concordant.comparison import compare as module
from concordant.comparison.board import board_row, markdown
from concordant.comparison.compare import ORIGIN, SEEDS, compare, expected_config, make_plan
from concordant.comparison.jobs import Outcome
from concordant.comparison.results import read_result
from concordant.comparison.revision import revision
from concordant.core.errors import ChainError, ConcordantError, ConfigError


@pytest.fixture
def trained(monkeypatch):
    """Replace processes by a function that writes what a run would leave; return what was asked for."""
    asked = []

    def run_all(jobs, workers=2, watch=None):
        outcomes = []
        for job in jobs:
            asked.append(job)
            job.folder.mkdir(parents=True, exist_ok=True)
            sets = [word for word in job.arguments if word != "--set"]
            (job.folder / "config.json").write_text(json.dumps(expected_config(job, sets)))
            (job.folder / ORIGIN).write_text(json.dumps({"revision": revision(recipes.get(job.slug))}))
            value = 0.7 + 0.01 * job.seed if job.arm == job.slug else 0.6
            summary = {"metrics": {"accuracy": value}, "failure_meters": {"tied": 0.5}, "wall_seconds": 1.0}
            (job.folder / "summary.json").write_text(json.dumps(summary))
            outcomes.append(Outcome(job, "ran", summary))
        return outcomes

    monkeypatch.setattr(module, "run_all", run_all)
    return asked


@pytest.fixture
def places(tmp_path):
    return {"out": tmp_path / "runs", "results": tmp_path / "results"}


def test_the_profile_chooses_arms_and_seeds():
    plan = make_plan("gdpo", profile="quick")
    assert plan.seeds == SEEDS["quick"] == (0, 1, 2)
    assert plan.arms == recipes.get("gdpo").arms_of("quick")
    assert plan.whole
    assert not make_plan("gdpo", arms=("gdpo", "grpo")).whole
    assert not make_plan("gdpo", seeds=(0, 1)).whole
    assert not make_plan("gdpo", sets=("train.steps=3",)).whole


def test_jobs_come_seed_by_seed():
    jobs = make_plan("gdpo", arms=("gdpo", "grpo"), seeds=(0, 1)).jobs()
    assert [(job.arm, job.seed) for job in jobs] == [("gdpo", 0), ("grpo", 0), ("gdpo", 1), ("grpo", 1)]
    command = " ".join(jobs[0].words())
    assert command == "run gdpo --arm gdpo --seed 0 --profile quick --out runs --resume --json"


def test_finished_runs_are_used_again_until_configuration_or_code_changes(trained, places, monkeypatch):
    few = {"arms": ("gdpo", "grpo"), "seeds": (0, 1), **places}
    compare("gdpo", **few)
    assert len(trained) == 4
    compare("gdpo", **few)
    assert len(trained) == 4
    compare("gdpo", **{**few, "seeds": (0, 1, 2)})
    assert len(trained) == 6
    compare("gdpo", sets=("train.lr=1e-5",), **few)
    assert [job.fresh for job in trained[6:]] == [True] * 4
    compare("gdpo", fresh=True, **few)
    assert len(trained) == 14
    monkeypatch.setattr(module, "revision", lambda recipe: "another")
    compare("gdpo", **few)
    assert len(trained) == 18


def test_only_a_whole_measurement_reaches_the_results(trained, places):
    compare("gdpo", profile="smoke", **places)
    compare("gdpo", arms=("gdpo", "grpo"), **places)
    compare("gdpo", sets=("train.lr=1e-5",), **places)
    assert not places["results"].exists()
    assert (places["out"] / "gdpo" / "result.json").exists()
    compare("gdpo", **places)
    assert read_result(places["results"] / "gdpo.json")["profile"] == "quick"


def test_a_quick_result_does_not_replace_a_full_one_of_the_same_code(trained, places, monkeypatch):
    compare("gdpo", profile="full", **places)
    compare("gdpo", profile="quick", **places)
    path = places["results"] / "gdpo.json"
    assert read_result(path)["profile"] == "full"
    monkeypatch.setattr(module, "revision", lambda recipe: "newer")
    compare("gdpo", profile="quick", **places)
    assert read_result(path)["profile"] == "quick"


def test_a_wrong_setting_stops_before_anything_runs(trained, places):
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        compare("gdpo", sets=("train.step=3",), **places)
    with pytest.raises((ConfigError, ChainError), match="eps"):
        compare("gdpo", sets=("chain.z.epz=1",), **places)
    assert trained == []
    assert not places["out"].exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slug": "gdop"}, "did you mean 'gdpo'"),
        ({"slug": "gdpo", "profile": "quik"}, "did you mean 'quick'"),
        ({"slug": "gdpo", "arms": ("grop",)}, "did you mean 'grpo'"),
    ],
)
def test_unknown_names_get_the_nearest(options, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(**options)


def test_unwritable_results_are_named(trained, places):
    places["results"].write_text("")
    with pytest.raises(ConcordantError, match="--results"):
        compare("gdpo", **places)


def test_the_board_knows_what_is_missing_and_what_is_stale(trained, places):
    recipe = recipes.get("gdpo")
    assert board_row(recipe, places["results"]).state == "not measured"
    compare("gdpo", **places)
    row = board_row(recipe, places["results"])
    assert (row.state, row.seeds, row.profile) == ("current", 3, "quick")
    path = places["results"] / "gdpo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "older"}))
    assert board_row(recipe, places["results"]).state == "older than its code"
    text = markdown([board_row(recipe, places["results"]), board_row(recipes.get("prof"), places["results"])])
    assert "older than its code" in text
    assert "| prof |" in text
