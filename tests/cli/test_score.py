"""`concordant score`: what it prints, its exit codes, and what it says about wrong input."""

import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REWARDS = """
import time

def correct(completion, answer):
    return float(completion == answer)

def half(completion):
    return None if completion == "0" else 1.0

def nothing(completion):
    return None

def broken(completion):
    return 1 / 0

def hangs(completion):
    while completion == "0":
        time.sleep(0.01)
    return 1.0

def trl(prompts, completions, **columns):
    return [float(len(text)) for text in completions]

def asks(completion, anser):
    return 1.0
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with my.py, x.jsonl and x.parquet; ten rollouts in groups of two, `correct` as it was."""
    rows = [
        {
            "prompt": f"q{i // 2}",
            "completion": str(i % 2),
            "answer": "1",
            "correct": float(i == 0),
            "note": "n",
        }
        for i in range(10)
    ]
    (tmp_path / "my.py").write_text(REWARDS)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")


def test_as_json(call, place):
    ended = call(
        "score",
        "x.parquet",
        "--reward",
        "my.py:correct",
        "--reward",
        "my.py:half",
        "--out",
        "o.jsonl",
        "--json",
    )
    assert ended.exit_code == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told.keys() == {"path", "format", "out", "rows", "kept", "resumed", "seconds", "rewards"}
    correct, half = told["rewards"]["correct"], told["rewards"]["half"]
    assert (correct["scored"], correct["mean"], correct["tied_groups"]) == (10, 0.5, 0.0)
    assert (half["scored"], half["missing"], half["agreement"]) == (5, {"returned None": 5}, None)
    agreement = correct["agreement"]
    assert (agreement["equal"], agreement["mean_difference"]) == (0.4, pytest.approx(0.4))
    assert (agreement["pairs"], agreement["order_reversed"]) == (1, 1.0)
    assert [each["row"] for each in agreement["differ_most"]] == [0, 1, 3, 5, 7]
    rows = [json.loads(line) for line in (place / "o.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [0.0, 1.0] * 5
    assert [row["half_missing"] for row in rows] == ["returned None", None] * 5
    assert names(place) == ["my.py", "o.jsonl", "x.jsonl", "x.parquet"]


def test_for_people(call, place):
    ended = call(
        "score", "x.jsonl", "--reward", "my.py:correct", "--reward", "my.py:half", "--out", "o.parquet"
    )
    assert ended.exit_code == 0, ended.stderr
    for wanted in ("10 rollouts", "returned None", "40.0 %", "line 1", "differ most", "+0.4"):
        assert wanted in ended.stdout
    assert "written: o.parquet" in ended.stderr
    assert pq.read_table("o.parquet").column("correct").to_pylist() == [0.0, 1.0] * 5


def test_without_out_nothing_is_written(call, place):
    assert call("score", "x.jsonl", "--reward", "my.py:trl").exit_code == 0
    assert names(place) == ["my.py", "x.jsonl", "x.parquet"]


def test_a_time_limit_is_a_missing_value(call, place):
    """Ten rollouts, five of them hang for 0.3 s each on two workers; the others are scored."""
    ended = call("score", "x.jsonl", "--reward", "my.py:hangs", "--timeout", "0.3", "--json")
    told = json.loads(ended.stdout)["rewards"]["hangs"]
    assert ended.exit_code == 0
    assert told["missing"] == {"timed out after 0.3 s": 5}
    assert (told["scored"], told["mean"]) == (5, 1.0)


def test_the_cache_is_used_by_the_next_call(call, place):
    for expected in (0, 10):
        ended = call("score", "x.jsonl", "--reward", "my.py:correct", "--cache", "c.db", "--json")
        assert json.loads(ended.stdout)["rewards"]["correct"]["cached"] == expected
    (place / "my.py").write_text(REWARDS + "\n# another version\n")
    ended = call("score", "x.jsonl", "--reward", "my.py:correct", "--cache", "c.db", "--json")
    assert json.loads(ended.stdout)["rewards"]["correct"]["cached"] == 0
    assert "between processes" not in ended.stderr


def test_a_cache_that_cannot_serve_a_reward_again_is_told(call, place):
    (place / "holds.py").write_text(
        "class Holds:\n    def __init__(self):\n        self.log = open('/dev/null')\n"
        "    def __call__(self, completion):\n        return 1.0\n\nheld = Holds()\n"
    )
    for words, told in ((("--cache", "c.db"), True), ((), False)):
        ended = call("score", "x.jsonl", "--reward", "holds.py:held", "--json", *words)
        assert json.loads(ended.stdout)["rewards"]["held"]["mean"] == 1.0
        assert ("'held' holds something that cannot be compared between processes" in ended.stderr) is told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reward", "my.py:nothing"), "'nothing' judged nothing; most often: returned None"),
        (("--reward", "my.py:broken"), "judged nothing; most often: raised ZeroDivisionError"),
        (("--reward", "my.py:broken", "--batch-rows", "2"), "failed on all of the first"),
        (("--reward", "my.py:half", "--missing", "fail"), "x.jsonl, line 1: returned None"),
    ],
    ids=["declines", "fails", "fails early", "policy"],
)
def test_findings_have_exit_code_one(call, place, words, message):
    ended = call("score", "x.jsonl", *words)
    assert ended.exit_code == 1
    assert "finding: " in ended.stderr
    assert message in ended.stderr


def test_dropped_rollouts_are_counted(call, place):
    ended = call(
        "score", "x.jsonl", "--reward", "my.py:half", "--missing", "drop-rollout", "--out", "o.jsonl"
    )
    assert ended.exit_code == 0
    assert "5 rollouts dropped" in ended.stderr
    assert len((place / "o.jsonl").read_text().splitlines()) == 5


GOOD = ("--reward", "my.py:correct")
WRONG = {
    "no reward": (("x.jsonl",), "at least one --reward"),
    "no such reward": (("x.jsonl", "--reward", "my.py:corect"), "did you mean 'correct'"),
    "no such reward file": (("x.jsonl", "--reward", "your.py:correct"), "no file 'your.py'"),
    "same name twice": (("x.jsonl", *GOOD, *GOOD), "two rewards are called 'correct'"),
    "a field that is not there": (("x.jsonl", "--reward", "my.py:asks"), "did you mean 'answer'"),
    "no such file": (("y.jsonl", *GOOD), "did you mean 'x.jsonl'"),
    "a folder": ((".", *GOOD), "is a folder"),
    "another kind of file": (("my.py", *GOOD), "from .parquet or .jsonl, not .py"),
    "empty": (("empty.jsonl", *GOOD), "empty.jsonl is empty"),
    "blank": (("blank.jsonl", *GOOD), "only blank lines"),
    "no rows": (("none.parquet", *GOOD), "has no rows"),
    "not Parquet": (("text.parquet", *GOOD), "cannot be read as Parquet"),
    "not JSON": (("broken.jsonl", *GOOD), "broken.jsonl, line 3: not JSON"),
    "not JSON, and out": (("broken.jsonl", *GOOD, "--out", "o.jsonl"), "broken.jsonl, line 3: not JSON"),
    "no object": (("list.jsonl", *GOOD), "line 2: expected an object"),
    "a key that is gone": (("uneven.jsonl", *GOOD), "line 2: no 'answer', which line 1 has"),
    "not UTF-8": (("latin.jsonl", *GOOD), "latin.jsonl, line 1: not JSON"),
    "unknown column in --map": (("x.jsonl", *GOOD, "--map", "answer=anser"), "did you mean 'answer'"),
    "no mapping": (("x.jsonl", *GOOD, "--map", "answer"), "write NAME=COLUMN"),
    "unknown group": (("x.jsonl", *GOOD, "--group", "promt"), "did you mean 'prompt'"),
    "unknown old": (("x.jsonl", *GOOD, "--old", "corect"), "did you mean 'correct'"),
    "old is no number": (
        ("x.jsonl", *GOOD, "--old", "note"),
        "line 1: an old score must be a number, got str",
    ),
    "old of what is not scored": (("x.jsonl", *GOOD, "--old", "corect=note"), "did you mean 'correct'"),
    "unknown policy": (("x.jsonl", *GOOD, "--missing", "drop"), "did you mean 'drop-"),
    "time limit": (("x.jsonl", *GOOD, "--timeout", "0"), "timeout must be a positive number"),
    "out is the input": (("x.jsonl", *GOOD, "--out", "x.jsonl"), "is the input"),
    "out is the input by a link": (("x.jsonl", *GOOD, "--out", "link.jsonl"), "is the input"),
    "out is something else": (("x.jsonl", *GOOD, "--out", "uneven.jsonl"), "holds something else"),
    "out of another kind": (("x.jsonl", *GOOD, "--out", "o.csv"), "to .parquet or .jsonl"),
    "out in no folder": (("x.jsonl", *GOOD, "--out", "nowhere/o.jsonl"), "no folder nowhere"),
    "out is a folder": (("x.jsonl", *GOOD, "--out", "folder.jsonl"), "is a folder"),
    "cache is something else": (("x.jsonl", *GOOD, "--cache", "my.py"), "is not a cache"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(call, place, case):
    words, message = WRONG[case]
    line = (place / "x.jsonl").read_text().splitlines()[0]
    contents = {
        "empty.jsonl": "", "blank.jsonl": "\n\n", "text.parquet": "text", "list.jsonl": f"{line}\n[1]\n",
        "broken.jsonl": f'{line}\n\n{{"prompt": \n', "uneven.jsonl": f'{line}\n{{"completion": "a"}}\n',
    }  # fmt: skip
    for name, text in contents.items():
        (place / name).write_text(text)
    (place / "latin.jsonl").write_bytes('{"completion": "é"}\n'.encode("latin-1"))
    (place / "link.jsonl").symlink_to(place / "x.jsonl")
    (place / "folder.jsonl").mkdir()
    pq.write_table(pq.read_table(place / "x.parquet").slice(0, 0), place / "none.parquet")
    before = {path: path.read_bytes() if path.is_file() else b"" for path in place.iterdir()}
    ended = call("score", *words)
    assert ended.exit_code == 2, ended.output
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    shutil.rmtree(place / "__pycache__", ignore_errors=True)
    assert {path: path.read_bytes() if path.is_file() else b"" for path in place.iterdir()} == before


def test_an_unwritable_place(call, place):
    (place / "o.jsonl.parts").write_text("in the way")
    ended = call("score", "x.jsonl", *GOOD, "--out", "o.jsonl")
    assert ended.exit_code == 2
    assert "choose another --out" in ended.stderr
    assert (place / "o.jsonl.parts").read_text() == "in the way"


def test_parts_of_another_scoring(call, place):
    (place / "o.jsonl.parts").mkdir()
    (place / "o.jsonl.parts" / "lock").write_text("")
    (place / "o.jsonl.parts" / "manifest.json").write_text(
        json.dumps({"format": 1, "input": {}, "rewards": []})
    )
    pq.write_table(pa.table({"group": [0]}), place / "o.jsonl.parts" / "000000000000.parquet")
    ended = call("score", "x.jsonl", *GOOD, "--out", "o.jsonl")
    assert ended.exit_code == 2
    assert "--fresh" in ended.stderr
    assert call("score", "x.jsonl", *GOOD, "--out", "o.jsonl", "--fresh").exit_code == 0
    assert not (place / "o.jsonl.parts").exists()


def test_two_functions_of_a_name(call, place):
    (place / "other.py").write_text("def correct(completion):\n    return 0.25\n")
    words = (
        "--reward",
        "my.py:correct",
        "--reward",
        "new=other.py:correct",
        "--old",
        "new=correct",
        "--json",
    )
    told = json.loads(call("score", "x.jsonl", *words).stdout)["rewards"]
    assert (told["correct"]["mean"], told["new"]["mean"], told["new"]["old"]) == (0.5, 0.25, "correct")


def test_an_earlier_result_is_replaced(call, place):
    for reward in ("correct", "half"):
        words = (
            ("score", "x.jsonl", *GOOD, "--reward", f"my.py:{reward}")
            if reward == "half"
            else ("score", "x.jsonl", *GOOD)
        )
        assert call(*words, "--out", "o.jsonl").exit_code == 0
    assert "half" in json.loads((place / "o.jsonl").read_text().splitlines()[0])


def test_help_names_the_options(call):
    shown = call("score", "--help")
    assert shown.exit_code == 0
    for option in ("--reward", "--out", "--cache", "--missing", "--map", "--old", "--fresh", "--json"):
        assert option in shown.output


def test_it_needs_no_torch(place):
    program = (
        "import sys\nfrom concordant.cli.app import main\n"
        "try:\n    main(['score', 'x.parquet', '--reward', 'my.py:correct', '--out', 'o.parquet', '--json'])\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stderr.split()[-2:] == ["False", "False"], ended.stderr
