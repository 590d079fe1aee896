"""The report of generators: samples before and after, reward against gold, and what each arm cost."""

import base64
import json
import re

import numpy as np
import pytest
import torch

from concordant.cli.compare import cost_table, show
from concordant.comparison.results import assemble, budget
from concordant.core.chain import Context
from concordant.core.table import Table
from concordant.experiment import build
from concordant.loops.records import Records
from concordant.loops.samples import save_samples
from concordant.report.against import proxies, proxy_and_gold
from concordant.report.page import page
from concordant.report.pictures import field_image, grids
from concordant.report.rollouts import explained, samples
from concordant.scoring.arrays import dump

DATA = r'<img src="data:image/png;base64,([A-Za-z0-9+/=]+)"'


@pytest.fixture
def drawn(result, tmp_path):
    """The result of a generator with samples of the method at three steps, of the baseline at one."""
    folder = tmp_path / "gdpo"
    for arm, steps in (("gdpo", (0, 5, 10)), ("grpo", (0,))):
        for seed in (0, 1):
            run = folder / arm / f"seed{seed}"
            run.mkdir(parents=True)
            for step in steps:
                save_samples(run, step, images(step / 10, 4))
    curves = {
        "gdpo": [
            [{"step": s, "cls": 0.6 + s / 30, "gold": 0.6 + s / 60, "accuracy": 0.5} for s in (0, 5, 10)]
        ]
        * 2,
        "grpo": [[{"step": s, "cls": 0.6, "gold": 0.6, "accuracy": 0.5} for s in (0, 5, 10)], []],
    }
    settings = {"gdpo": {"arm": {"rewards": ["cls", "quality"]}}, "grpo": {"arm": {"rewards": ["ink"]}}}
    return {**result, "world": "flow/digits", "curves": curves, "settings": settings}, folder


def images(value, count):
    return Table.of(
        {"id": ("b", torch.arange(count))},
        {
            "prompt": [f"digit {i % 2}" for i in range(count)],
            "image": [np.full((8, 8, 1), value, np.float32)] * count,
        },
    )


# ---- grids ---------------------------------------------------------------------------------------------------------


def test_the_first_and_the_last_grid_of_the_first_seed(drawn):
    result, folder = drawn
    found = {each["arm"]: each for each in grids(result, folder)}
    assert [(p["when"], p["step"]) for p in found["gdpo"]["pictures"]] == [("before", 0), ("after", 10)]
    assert [(p["when"], p["step"]) for p in found["grpo"]["pictures"]] == [("before", 0)]
    assert found["gdpo"]["prompts"] == ["digit 0", "digit 1"]


def test_the_page_holds_the_pictures_themselves(drawn):
    result, folder = drawn
    text = page(result, folder)
    held = re.findall(DATA, text)
    assert len(held) == 3
    stored = (folder / "gdpo" / "seed0" / "samples" / "00000010.png").read_bytes()
    assert base64.b64decode(held[1]) == stored
    assert text.count("<img") == 3
    assert "Prompts, from top to bottom: digit 0; digit 1." in text
    assert "after, step 10" in text


def test_text_has_neither_grids_nor_a_plot_of_reward_against_gold(result, make_run, tmp_path):
    make_run()
    result["settings"] = {"gdpo": {"arm": {"rewards": ["correct", "format"]}}}
    for runs in result["curves"].values():
        for point in runs[0]:
            point["format"] = 0.5
    text = page(result, tmp_path / "gdpo")
    assert "<img" not in text
    assert "Samples before" not in text
    assert "What the reward says" not in text
    assert proxies(result) == ("", [])


# ---- reward against gold -------------------------------------------------------------------------------------------


def test_which_metrics_are_rewards(drawn):
    result, _ = drawn
    assert proxies(result) == ("gold", ["cls"]), "quality and ink were not measured"
    for runs in result["curves"].values():
        for run in runs:
            for point in run:
                point["ink"] = 0.3
    assert proxies(result) == ("gold", ["cls", "ink"])
    for runs in result["curves"].values():
        for run in runs:
            for point in run:
                point.pop("gold", None)
    assert proxies(result) == ("accuracy", ["cls", "ink"])
    assert proxies({**result, "world": "lm/arithmetic"}) == ("", [])


def test_ways_run_from_the_ring_to_the_dot(drawn):
    result, _ = drawn
    figure = proxy_and_gold(result)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cls", "gold")
    thick = [line for line in axes.lines if line.get_linewidth() == 2 and len(line.get_xdata()) > 1]
    assert list(thick[0].get_xdata()) == pytest.approx([0.6, 0.6 + 5 / 30, 0.6 + 10 / 30])
    assert list(thick[0].get_ydata()) == pytest.approx([0.6, 0.6 + 5 / 60, 0.6 + 10 / 60])
    ends = [line for line in axes.lines if line.get_marker() == "o"]
    assert ends[0].get_markerfacecolor() == "white"
    assert float(ends[0].get_xdata()[0]) == pytest.approx(0.6)
    assert float(ends[1].get_xdata()[0]) == pytest.approx(0.6 + 10 / 30)
    assert any(line.get_linestyle() == ":" for line in axes.lines), "where both agree"


def test_a_reward_outside_the_unit_interval_has_no_diagonal(drawn):
    result, _ = drawn
    for runs in result["curves"].values():
        for run in runs:
            for point in run:
                point["cls"] -= 1
    (axes,) = proxy_and_gold(result).axes
    assert not any(line.get_linestyle() == ":" for line in axes.lines)


def test_points_without_both_numbers_are_left_out(drawn):
    result, _ = drawn
    result["curves"]["gdpo"][0][1].pop("gold")
    result["curves"]["gdpo"] = result["curves"]["gdpo"][:1]
    (axes,) = proxy_and_gold(result).axes
    assert max(len(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 2) == 3, (
        "the other arm's"
    )
    assert len([line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2]) == 1


# ---- cost ----------------------------------------------------------------------------------------------------------


def test_the_cost_of_each_arm_is_the_mean_over_its_runs(recipe_and_outcomes):
    recipe, outcomes = recipe_and_outcomes
    result = assemble(recipe, "quick", outcomes)
    assert result["cost"]["fake"] == {
        "tokens": 0, "rollouts": 100, "reward_calls": 200, "evaluations": 1500, "updates": 7, "wall_seconds": 3.5,
    }  # fmt: skip
    names, cells = budget(result)
    assert names == ["rollouts", "network evaluations", "reward calls", "optimiser updates", "seconds"]
    assert cells["fake"] == ["100", "1,500", "200", "7", "3.5"]
    assert cells["grpo"] == ["100", "0", "200", "7", "12.0"]
    json.dumps(result, allow_nan=False)


def test_the_cost_is_printed_and_reported(recipe_and_outcomes, capsys, tmp_path):
    recipe, outcomes = recipe_and_outcomes
    result = assemble(recipe, "quick", outcomes, settings={}, differences={}, revision="", command="")
    show(result)
    said = capsys.readouterr().out
    assert "cost of a run (mean over seeds)" in said
    assert re.search(r"fake +100 +1,500 +200 +7 +3\.5", said)
    assert "tokens" not in said
    text = re.sub(r"<[^>]+>", " ", page(result, tmp_path))
    assert "network evaluations" in text
    assert re.search(r"fake\s+100\s+1,500\s+200\s+7\s+3\.5", text)


def test_results_from_before_costs_were_kept_are_shown_without(result, tmp_path):
    assert budget(result) == ([], {"gdpo": [], "grpo": []})
    assert cost_table(result) is None
    assert "What it cost" not in page({k: v for k, v in result.items() if k != "cost"}, tmp_path)


@pytest.fixture
def recipe_and_outcomes(tmp_path):
    from concordant.comparison.jobs import Job, Outcome
    from tests.comparison.conftest import FakeRecipe

    made = []
    for arm, evaluations, seconds in (("fake", (1000, 2000), (3.0, 4.0)), ("grpo", (0, 0), (12.0, 12.0))):
        for seed in (0, 1):
            cost = {"tokens": 0, "rollouts": 100, "reward_calls": 200, "updates": 7}
            if arm == "fake":
                cost["evaluations"] = evaluations[seed]
            summary = {
                "metrics": {"accuracy": 0.5},
                "failure_meters": {},
                "curve": [],
                "cost": cost,
                "wall_seconds": seconds[seed],
            }
            made.append(Outcome(Job("fake", arm, seed, "quick", tmp_path), "ran", summary))
    return FakeRecipe(claims=()), made


# ---- stored images -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run folder with four stored images."""
    folder = tmp_path / "seed0"
    folder.mkdir()
    experiment = build("grpo", profile="smoke")
    from concordant.core.config import plain

    (folder / "config.json").write_text(json.dumps(plain(experiment)))
    rows = Table.of(
        {
            "id": ("b", torch.arange(4)),
            "group": ("b", torch.tensor([0, 0, 1, 1])),
            "mask": ("b s", torch.ones(4, 2, dtype=torch.bool)),
            "keep": ("b", torch.ones(4, dtype=torch.bool)),
            "correct": ("b", torch.tensor([1.0, 0.0, 0.5, 0.0])),
            "format": ("b", torch.ones(4)),
            "short": ("b", torch.ones(4)),
        },
        {"prompt": ["3"] * 4, "image": [np.full((8, 8, 1), i / 4, np.float32) for i in range(4)]},
    )
    records = Records(folder)
    records.rewind(0)
    records.add_rollouts(1, experiment.arm.chain.run(rows, Context()), 10)
    records.commit(1)
    records.finish()
    return folder


def test_an_image_is_explained_in_words(run, call):
    told = explained(run, 2)
    assert told["rollout"]["image"] == "float32 8 x 8 x 1, from 0.5 to 0.5, mean 0.5"
    assert told["rollout"]["prompt"] == "3"
    json.dumps(told)
    shown = call("explain", run, "--rollout", 2).stdout
    assert "float32 8 x 8 x 1, from 0.5 to 0.5" in shown
    assert "completion:" not in shown


def test_sample_rollouts_show_the_image(run):
    shown = samples(run)
    assert all(each["image"].startswith("data:image/png;base64,iVBOR") for each in shown)
    assert field_image(None) is field_image('"text"') is None
    assert field_image(dump(np.zeros(3))) is None
    assert field_image('{"concordant.array": "O"}') is None


@pytest.fixture
def call():
    from typer.testing import CliRunner

    from concordant.cli.app import app

    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], prog_name="concordant")


def test_up_to_fourteen_arms_look_different():
    from concordant.report.figures import look

    made = look([f"arm {i}" for i in range(14)])
    assert len({(each["color"], str(each["linestyle"])) for each in made.values()}) == 14
