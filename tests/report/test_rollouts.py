"""Stored rollouts: read back, explained with the numbers that were computed, sampled."""

import json

import pytest

from concordant.core.errors import DataError
from concordant.report.rollouts import explained, read_rows, rows_of_step, samples


def test_the_explanation_gives_every_stage_with_its_inputs(make_run):
    told = explained(make_run(), 1)
    assert told["rollout"]["step"] == 2
    assert told["rollout"]["id"] == 201
    assert told["rollout"]["completion"] == "<b>5</b>"
    by_stage = {step["stage"]: step for step in told["steps"]}
    assert list(by_stage) == ["z", "total", "whitened", "advantage"]
    z = by_stage["z"]
    assert z["kernel"] == "group_zscore"
    assert z["inputs"] == {"correct": 0.0, "format": 1.0, "short": 1.0, "group": 0}
    # two members, ddof 1: -+ 1/sqrt(2) up to eps; `format` ties
    assert z["value"] == pytest.approx([-0.7071, 0.0, 0.7071], abs=2e-4)
    assert by_stage["total"]["inputs"]["z"] == z["value"]
    assert by_stage["advantage"]["summary"]


def test_missing_stays_missing(make_run):
    told = explained(make_run(), 2)
    z = next(step for step in told["steps"] if step["stage"] == "z")
    assert z["inputs"]["short"] != z["inputs"]["short"]  # NaN


def test_a_step_can_be_chosen(make_run):
    run = make_run()
    assert explained(run, 0, step=1)["rollout"]["id"] == 100
    with pytest.raises(DataError, match="no stored rollouts of step 7; there are 1 to 2"):
        explained(run, 0, step=7)


def test_an_unfinished_run_is_read_from_its_parts(make_run):
    run = make_run()
    whole = read_rows(run)
    (run / "rollouts").mkdir()
    (run / "rollouts.parquet").rename(run / "rollouts" / "00000002.parquet")
    assert json.dumps(read_rows(run)) == json.dumps(whole)


def test_the_best_and_the_worst_are_sampled(make_run):
    best, worst = samples(make_run())
    numbers = [dict(each["numbers"]) for each in (best, worst)]
    assert numbers[0]["advantage"] > numbers[1]["advantage"]
    assert list(numbers[0]) == ["correct", "format", "short", "z", "total", "whitened", "advantage"]
    assert [len(numbers[0][name]) for name in ("correct", "z", "advantage")] == [1, 3, 1]


def test_a_run_without_rollouts_has_no_samples(tmp_path):
    assert samples(tmp_path) == []


@pytest.mark.parametrize("rollout", [-1, 4])
def test_a_rollout_that_is_not_there(make_run, rollout):
    with pytest.raises(DataError, match="step 2 has 0 to 3"):
        explained(make_run(), rollout)


def test_faults_are_named(make_run, tmp_path):
    with pytest.raises(DataError, match="not a run folder"):
        explained(tmp_path, 0)
    run = make_run()
    (run / "rollouts.parquet").write_bytes(b"cut short")
    with pytest.raises(DataError, match="--fresh"):
        rows_of_step(run)
    (run / "rollouts.parquet").unlink()
    with pytest.raises(DataError, match="log_rollouts"):
        rows_of_step(run)
    (run / "config.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        explained(run, 0)


def test_a_kernel_that_is_no_more(make_run):
    run = make_run()
    config = json.loads((run / "config.json").read_text())
    config["arm"]["chain"]["z"]["kernel"] = "group_zscore_2019"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="group_zscore_2019"):
        explained(run, 0)
