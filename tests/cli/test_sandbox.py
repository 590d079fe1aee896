"""`--unsafe-no-sandbox` reaches the workers, and every record says how programs were locked in."""

import json

import pytest

from concordant.cli.app import main
from concordant.scoring.isolation import isolation, set_isolation

REWARD = """
from concordant.rewards import CodeTests

passes = CodeTests()
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(REWARD)
    row = {
        "prompt": "double it",
        "completion": "print(int(input()) * 2)",
        "tests": [{"stdin": "4", "expected": "8"}],
    }
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    yield tmp_path
    set_isolation("bubblewrap")


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        pytest.param([], "bubblewrap", marks=pytest.mark.sandbox),
        (["--unsafe-no-sandbox"], "none"),
    ],
)
def test_each_record_says_how_the_program_was_locked_in(files, flags, level):
    with pytest.raises(SystemExit) as end:
        main(["score", "d.jsonl", "--reward", "r.py:passes", "--out", "o.jsonl", "--cache", "c.db", *flags])
    assert end.value.code == 0
    (row,) = map(json.loads, (files / "o.jsonl").read_text().splitlines())
    assert (row["passes"], row["passes_sandbox"]) == (1.0, level)
    assert isolation() == level


@pytest.mark.sandbox
def test_a_cached_score_of_one_level_is_not_given_for_the_other(files):
    for flags, cached in ((["--unsafe-no-sandbox"], False), ([], False), ([], True)):
        set_isolation("bubblewrap")
        with pytest.raises(SystemExit):
            main(
                [
                    "score",
                    "d.jsonl",
                    "--reward",
                    "r.py:passes",
                    "--out",
                    "o.jsonl",
                    "--cache",
                    "c.db",
                    "--fresh",
                    *flags,
                ]
            )
        (row,) = map(json.loads, (files / "o.jsonl").read_text().splitlines())
        assert row["passes_cached"] is cached
