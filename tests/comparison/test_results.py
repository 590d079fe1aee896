"""The result of a comparison: schema, missing runs, atomic files."""

import json
import math

import pytest

from concordant.comparison import results
from concordant.comparison.results import (
    assemble,
    exit_code,
    mean_sd,
    metric_names,
    read_result,
    tidy,
    write_json,
)
from concordant.core.errors import DataError

PROMISED = {"slug", "profile", "seeds", "arms", "claims", "failure_meters", "wall_seconds", "versions"}


def test_schema(recipe, outcomes):
    result = assemble(recipe, "quick", outcomes(), revision="abc")
    assert result.keys() >= PROMISED
    assert result["seeds"] == [0, 1, 2]
    assert result["arms"]["grpo"]["accuracy"] == [0.60, 0.62, 0.63]
    assert result["failure_meters"] == {"tied": 0.5}
    assert result["wall_seconds"] == 60.0
    assert result["revision"] == "abc"
    (claim,) = result["claims"]
    assert claim.keys() >= {"metric", "arm", "versus", "difference", "interval", "verdict", "reason"}
    assert (claim["arm"], claim["versus"], claim["verdict"]) == ("fake", "grpo", "supported")
    json.dumps(result, allow_nan=False)


def test_a_failed_run_is_null_and_pairs_are_kept(recipe, outcomes):
    result = assemble(recipe, "quick", outcomes(method=(0.71, None, 0.74)))
    assert result["arms"]["fake"]["accuracy"] == [0.71, None, 0.74]
    assert result["claims"][0]["per_seed"] == pytest.approx([0.11, 0.11])
    assert result["failures"] == [
        {"arm": "fake", "seed": 1, "error": "exit code 1; last lines of the log:\nboom"}
    ]
    assert exit_code(result) == 1


def test_an_arm_that_failed_throughout(recipe, outcomes):
    result = assemble(recipe, "quick", outcomes(baseline=(None, None, None)))
    assert result["claims"][0]["verdict"] == "inconclusive"
    assert "did not measure" in result["claims"][0]["reason"]


def test_a_number_that_is_none_becomes_null(recipe, outcomes):
    result = assemble(recipe, "quick", outcomes(method=(0.7, math.nan, math.inf)))
    assert result["arms"]["fake"]["accuracy"] == [0.7, None, None]


def test_exit_codes(recipe, outcomes):
    assert exit_code(assemble(recipe, "quick", outcomes())) == 0
    assert exit_code(assemble(recipe, "quick", outcomes(method=(0.5, 0.51, 0.52)))) == 1  # refuted
    assert exit_code(assemble(recipe, "smoke", outcomes(method=(0.5, 0.51, 0.52)))) == 0  # not judged


def test_metrics_of_claims_come_first(recipe, outcomes):
    result = assemble(recipe, "quick", outcomes())
    result["arms"]["fake"] = {"length": [1.0], "accuracy": [1.0]}
    assert metric_names(result) == ["accuracy", "length"]
    assert metric_names(result, most=1) == ["accuracy"]


def test_mean_and_deviation_by_hand():
    assert mean_sd([1.0, 2.0, None, 3.0]) == (2.0, 1.0)
    assert mean_sd([4.0]) == (4.0, 0.0)
    assert mean_sd([None]) is None


def test_tidy_leaves_nothing_that_json_lacks():
    assert tidy({"a": (1, math.nan), 2: {"b": -math.inf}}) == {"a": [1, None], "2": {"b": None}}


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = write_json(tmp_path / "deep" / "r.json", {"a": 1})
    monkeypatch.setattr(results.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ('{"slug": "gdpo"}', "no 'profile'"), (None, "cannot read")],
)
def test_a_file_that_is_no_result_is_named(tmp_path, text, message):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_result(path)
