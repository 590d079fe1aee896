"""What the verbs print, for people and for programs."""

import json

import pytest

LIST_KEYS = {"slug", "kind", "title", "world", "stages", "baseline", "controls", "result"}


def test_list_as_json(call, tmp_path):
    entries = json.loads(call("list", "--json", "--results", tmp_path).stdout)
    assert all(entry.keys() == LIST_KEYS for entry in entries)
    by_slug = {entry["slug"]: entry for entry in entries}
    assert by_slug["gdpo"]["kind"] == "system"
    assert by_slug["gdpo"]["stages"] == ["z", "total", "whitened", "advantage"]
    assert by_slug["gdpo"]["baseline"] == "grpo"
    assert by_slug["gdpo"]["result"] is None
    assert by_slug["grpo"]["kind"] == "baseline"


def test_list_for_people(call, tmp_path):
    shown = call("list", "--kind", "system", "--results", tmp_path).stdout
    assert "gdpo" in shown
    assert "dr-grpo" not in shown


def test_list_tells_what_was_measured(call, tmp_path):
    result = {
        "slug": "gdpo",
        "profile": "quick",
        "seeds": [0, 1, 2],
        "arms": {},
        "claims": [{"verdict": "refuted"}],
    }
    (tmp_path / "gdpo.json").write_text(json.dumps({**result, "revision": "older"}))
    entries = json.loads(call("list", "--json", "--results", tmp_path).stdout)
    (measured,) = [entry["result"] for entry in entries if entry["result"]]
    assert measured["verdicts"] == {"refuted": 1}
    assert measured["stale"] is True
    assert "1 refuted (quick, older than its code)" in call("list", "--results", tmp_path).stdout


def test_show_expands_the_chain(call):
    shown = call("show", "gdpo", "--expand").stdout
    for wanted in (
        "group_zscore",
        "x=(correct, format",
        "eps=0.0001",
        "leaves out stage whitened",
        "refuted by",
    ):
        assert wanted in shown


def test_show_as_json(call):
    shown = json.loads(call("show", "gdpo", "--json").stdout)
    assert shown["chain"]["z"]["kernel"] == "group_zscore"
    assert shown["arms"]["gdpo"]["changes"] == []
    assert shown["profiles"]["smoke"]["train"]["steps"] <= 3
    assert shown["claims"][0]["refuted_by"]


def test_show_the_difference(call):
    changes = json.loads(call("show", "gdpo", "--diff", "gdpo-no-whitening", "--json").stdout)["changes"]
    told = {(change["stage"], change["what"]) for change in changes}
    assert told == {("whitened", "stage"), ("advantage", "reads x")}
    assert "nothing" in call("show", "gdpo", "--diff", "gdpo").stdout


@pytest.mark.parametrize("slug", ["copo", "grpo-care", "prof", "sage", "dapo", "rloo"])
def test_every_kind_of_recipe_can_be_shown(call, slug):
    shown = call("show", slug)
    assert shown.exit_code == 0, shown.output
    assert slug in shown.stdout


def test_the_board_without_results(call, tmp_path):
    rows = json.loads(call("board", "--json", "--results", tmp_path).stdout)
    assert {row["state"] for row in rows} == {"not measured"}
    assert {"gdpo", "copo", "grpo-care", "prof", "sage"} <= {row["slug"] for row in rows}
    assert "| gdpo |" in (tmp_path / "board.md").read_text()


def test_a_refuted_claim_on_the_board_is_a_finding(call, tmp_path):
    claim = {
        "metric": "accuracy",
        "arm": "gdpo",
        "versus": "grpo",
        "difference": -0.1,
        "interval": [-0.2, -0.05],
    }
    result = {
        "slug": "gdpo",
        "profile": "quick",
        "seeds": [0],
        "arms": {},
        "claims": [{**claim, "verdict": "refuted"}],
    }
    (tmp_path / "gdpo.json").write_text(json.dumps(result))
    ended = call("board", "--results", tmp_path)
    assert ended.exit_code == 1
    assert "-0.100 [-0.200, -0.050]" in ended.stdout
    assert "older than its code" in ended.stdout
