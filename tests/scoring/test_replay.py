"""Scoring stored rollouts: what is read, what is written, what is told, and what an interruption leaves."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from concordant.core.errors import CheckpointError, DataError, RewardError
from concordant.scoring.agreement import Agreement, Latency, Moments, Sample, Tally, spearman
from concordant.scoring.batches import Batches
from concordant.scoring.layout import recognise
from concordant.scoring.replay import MissingScore, NothingJudged, rescore
from concordant.scoring.reward import Reward, as_reward, reward
from concordant.scoring.rollout_files import Start, open_rollouts

ROOT = Path(__file__).resolve().parents[2]


@reward(inline=True)
def correct(completion, answer):
    return float(completion == answer)


@reward(inline=True)
def picky(completion):
    return None if completion.startswith("?") else float(len(completion))


@reward(inline=True, level="group")
def share(completion):
    """1 / size of the group: shows whether the whole group was seen."""
    return [1 / len(completion)] * len(completion)


@reward(inline=True)
def by_step(completion, context):
    return float(context.step)


@reward(inline=True, level="batch")
def place(completion):
    return list(range(len(completion)))


@reward(inline=True)
def fails(completion):
    raise ValueError("no")


def rewards(*functions):
    return [as_reward(function) for function in functions]


def plain(rows=10, size=4):
    """Prompts in groups of `size`; every third completion is wrong."""
    return [
        {"prompt": f"q{i // size}", "completion": str(i % 3), "answer": "0" if i % 2 else "1", "n": i}
        for i in range(rows)
    ]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_table(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(rows):
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


# --- what is read -------------------------------------------------------------------------------------------


def test_a_run_of_ours(tmp_path):
    torch = pytest.importorskip("torch")
    from concordant.core.table import Table
    from concordant.loops.records import Records

    records = Records(tmp_path)
    records.rewind(0)
    for step in (1, 2):
        table = Table.of(
            {
                "group": ("b", torch.tensor([0, 0, 1, 1])),
                "mask": ("b s", torch.tensor([[1, 1, 0]] * 4, dtype=torch.bool)),
                "turn": ("b n", torch.tensor([[1, 0]] * 4, dtype=torch.bool)),
                "correct": ("b", torch.tensor([1.0, 0.0, 0.1, float("nan")])),
            },
            {"prompt": ["p", "p", 'q "x"', 'q "x"'], "completion": ["1", "2", "1", "2"], "answer": ["1"] * 4,
             "missing": [{}] * 4},
        )  # fmt: skip
        records.add_rollouts(step, table, 4)
        records.commit(step)
    records.finish()

    @reward(inline=True, level="step")
    def each(completion):
        return [1.0, math.nan]

    @reward(inline=True, level="segment")
    def turns(completion, turn):
        return [float(sum(turn))]

    seen = []

    @reward(inline=True)
    def everything(completion, **fields):
        seen.append(sorted(fields))
        return 1.0

    done = rescore(
        tmp_path / "rollouts.parquet",
        rewards(correct, share, by_step, each, turns, everything),
        tmp_path / "o.parquet",
    )
    assert (done.format, done.rows) == ("concordant", 8)
    rows = read(tmp_path / "o.parquet")
    assert [row["correct"] for row in rows] == [1.0, 0.0] * 4
    assert [row["correct_old"] for row in rows[:3]] == [1.0, 0.0, pytest.approx(0.1)]
    assert [row["share"] for row in rows] == [0.5] * 8
    assert [row["by_step"] for row in rows] == [1.0] * 4 + [2.0] * 4
    assert [row["each"] for row in rows] == [[1.0, None]] * 8
    assert [row["turns"] for row in rows] == [[1.0]] * 8
    assert seen == [["answer", "prompt", "turn"]] * 8  # data, and what another reward asks for by name
    agreement = done.rewards["correct"]["agreement"]
    assert (agreement["both"], agreement["only_new"], agreement["equal"]) == (6, 2, 4 / 6)
    assert agreement["differ_most"][0]["completion"] == "1"
    assert done.rewards["correct"]["groups"] == 4
    assert done.rewards["each"]["mean"] == 1.0


def test_a_file_of_trl(tmp_path):
    def said(text):
        return [{"role": "assistant", "content": text}]

    rows = [
        {"step": 5, "prompt": [{"role": "user", "content": f"q{i // 2}"}], "completion": said(str(i % 2)),
         "judged": 0.5 * (i % 2), "solution": "1", "advantage": 0.1}
        for i in range(6)
    ]  # fmt: skip
    path = write_table(tmp_path / "completions_00005.parquet", rows)
    calls = []

    @reward(inline=True)
    def judged(prompts, completions, solution, **kwargs):
        calls.append((len(completions), sorted(kwargs)))
        return [float(c[0]["content"] == s) for c, s in zip(completions, solution, strict=True)]

    done = rescore(path, rewards(judged), tmp_path / "o.jsonl")
    assert done.format == "trl"
    assert calls == [(2, [])] * 3
    told = done.rewards["judged"]
    assert (told["mean"], told["tied_groups"]) == (0.5, 0.0)
    assert told["agreement"]["spearman"] == pytest.approx(1.0)
    assert told["agreement"]["equal"] == 0.5
    out = read(tmp_path / "o.jsonl")
    assert out[1]["judged"] == 1.0
    assert out[1]["judged_old"] == 0.5
    assert out[1]["completion"] == said("1")


def test_a_dump_of_verl(tmp_path):
    rows = [
        {
            "input": f"q{i // 2}",
            "output": str(i % 2),
            "gts": "1",
            "score": 1.0 - i % 2,
            "step": 3,
            "acc": True,
        }
        for i in range(6)
    ]
    done = rescore(write_lines(tmp_path / "3.jsonl", rows), rewards(correct), tmp_path / "o.jsonl")
    assert done.format == "verl"
    assert done.rewards["correct"]["old"] == "score"
    agreement = done.rewards["correct"]["agreement"]
    assert (agreement["equal"], agreement["spearman"], agreement["order_reversed"]) == (
        0.0,
        pytest.approx(-1),
        1.0,
    )
    assert [row["correct"] for row in read(tmp_path / "o.jsonl")] == [0.0, 1.0] * 3


def test_other_names_of_columns(tmp_path):
    rows = [{"response": "1", "truth": "1", "mark": 0.0, "who": i // 2} for i in range(4)]
    path = write_table(tmp_path / "x.parquet", rows)
    done = rescore(
        path, rewards(correct, share), columns={"completion": "response", "answer": "truth"},
        old={"correct": "mark"}, group="who",
    )  # fmt: skip
    assert done.rewards["correct"]["mean"] == 1.0
    assert done.rewards["share"]["mean"] == 0.5
    assert done.rewards["correct"]["agreement"]["mean_difference"] == 1.0


def test_who_wrote_it_is_told_from_the_columns():
    cases = {
        ("axes", "step", "group", "field.completion"): "concordant",
        ("step", "prompt", "completion", "accuracy", "advantage"): "trl",
        ("input", "output", "gts", "score", "step", "acc"): "verl",
        ("prompt", "completion", "answer"): "plain",
        ("input", "output", "score", "prompt", "completion"): "plain",
    }
    for columns, name in cases.items():
        assert recognise(columns).format == name
    assert recognise(["prompt", "completion", "group", "step"]).group == ("step", "group")
    assert recognise(["prompt", "completion"]).group == ("prompt",)
    assert recognise(["completion"]).group == ()


def test_scores_of_an_earlier_scoring_are_no_data(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", plain())
    rescore(path, rewards(picky), tmp_path / "one.jsonl")

    @reward(inline=True)
    def everything(**fields):
        return float(len(fields))

    rescore(tmp_path / "one.jsonl", rewards(everything, picky), tmp_path / "two.jsonl")
    rows = read(tmp_path / "two.jsonl")
    assert {row["everything"] for row in rows} == {4.0}
    assert [row["picky_old"] for row in rows] == [row["picky"] for row in rows]
    assert [name for name in rows[0] if "picky" in name] == [
        "picky_old", "picky", "picky_missing", "picky_seconds", "picky_attempts", "picky_cached", "picky_sandbox"
    ]  # fmt: skip


# --- batches ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), least=st.integers(1, 11), kind=st.booleans()
)
def test_batches_keep_groups_whole_and_do_not_depend_on_the_start(tmp_path_factory, sizes, least, kind):
    rows = [{"prompt": f"q{g}", "completion": str(i)} for g, size in enumerate(sizes) for i in range(size)]
    folder = tmp_path_factory.mktemp("b")
    path = write_table(folder / "x.parquet", rows) if kind else write_lines(folder / "x.jsonl", rows)
    source = open_rollouts(path)
    layout = recognise(source.columns)
    made = list(Batches(source, layout, ["completion"], least))
    spans = [(batch.first, batch.first + len(batch)) for batch in made]
    assert [a[1] for a in spans[:-1]] == [b[0] for b in spans[1:]]
    assert (spans[0][0], spans[-1][1]) == (0, len(rows))
    edges = {0, *np.cumsum(sizes).tolist()}
    assert {edge for span in spans for edge in span} <= edges
    assert all(b - a >= least for a, b in spans[:-1])
    assert all(not any(a + least <= edge < b for edge in edges) for a, b in spans), (
        "a batch ends at the first edge it may"
    )
    groups = [group for batch in made for group in batch.groups]
    assert groups == [
        int(start) for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False) for _ in range(size)
    ]
    for at, batch in enumerate(made):
        ends = batch.block.ends
        line = batch.block.numbers
        start = Start(batch.first + len(batch), ends[-1] if ends else 0, line[-1] if line else 0)
        rest = [(b.first, len(b)) for b in Batches(source, layout, ["completion"], least, start=start)]
        assert rest == [(b.first, len(b)) for b in made[at + 1 :]]


def test_a_group_that_goes_on_later_is_refused_if_a_reward_needs_groups(tmp_path):
    rows = [*plain(8), {**plain(1)[0]}]
    path = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match=r"line 9: a group goes on .* sort the file by 'prompt'"):
        rescore(path, rewards(share), batch_rows=2)
    assert rescore(path, rewards(correct), batch_rows=2).rows == 9


def test_rewards_of_a_whole_step(tmp_path):
    rows = [{**row, "step": i // 6} for i, row in enumerate(plain(18, 3))]
    path = write_table(tmp_path / "x.parquet", rows)
    rescore(path, rewards(place, share), tmp_path / "o.jsonl", batch_rows=2)
    assert [row["place"] for row in read(tmp_path / "o.jsonl")] == [0, 1, 2, 3, 4, 5] * 3
    assert [row["share"] for row in read(tmp_path / "o.jsonl")] == [1 / 3] * 18
    write_table(path, [*rows[6:12], *rows[:6]])
    with pytest.raises(DataError, match=r"row 6: step 0 comes after step 1; .* sort the file by 'step'"):
        rescore(path, rewards(place))
    with pytest.raises(DataError, match="no column 'step'"):
        rescore(write_table(tmp_path / "y.parquet", plain()), rewards(place))


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
@pytest.mark.parametrize("target", ["jsonl", "parquet"])
def test_every_way_of_files_gives_the_same_rows(tmp_path, source, target):
    rows = [{**row, "note": 'a "quote" é', "more": {"deep": [1, None]}} for row in plain(3000)]
    write = write_lines if source == "jsonl" else write_table
    path = write(tmp_path / f"x.{source}", rows)
    rescore(path, rewards(picky, correct), tmp_path / f"o.{target}", batch_rows=500)
    out = without_time(read(tmp_path / f"o.{target}"))
    assert len(out) == 3000
    for before, after in zip(rows, out, strict=True):
        assert {name: after[name] for name in before} == before
        assert after["correct"] == float(before["completion"] == before["answer"])
        assert after["picky"] == 1.0
        assert after["picky_missing"] is None
        assert (after["picky_cached"], after["picky_sandbox"]) == (False, "")
    assert sum(row["picky_attempts"] for row in out) >= 6  # three texts, each asked at least once in a batch


def test_lines_stay_as_they_were(tmp_path):
    """Spacing, order, numbers and unknown characters of the input are kept; blank lines go."""
    text = '\ufeff{"completion": "a",  "x": 1.50, "y":"\\u00e9\\ud800" }\r\n'
    text += '\n  {"completion":"b","x":2}\n{"completion":"c"}'
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    rescore(tmp_path / "x.jsonl", rewards(picky), tmp_path / "o.jsonl")
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    assert lines[0].startswith('{"completion": "a",  "x": 1.50, "y":"\\u00e9\\ud800", "picky": 1.0, ')
    assert lines[1].startswith('{"completion":"b","x":2, "picky": 1.0, ')
    assert [json.loads(line)["picky"] for line in lines] == [1.0] * 3


def test_types_that_differ_from_line_to_line_become_json_text(tmp_path):
    rows = [{"completion": "a", "x": 1, "y": {}, "z": 1}, {"completion": "b", "x": "two", "y": {}, "z": 2.5}]
    rescore(write_lines(tmp_path / "x.jsonl", rows), rewards(picky), tmp_path / "o.parquet")
    out = read(tmp_path / "o.parquet")
    assert [row["x"] for row in out] == ["1", '"two"']
    assert [row["y"] for row in out] == ["{}", "{}"]
    assert [row["z"] for row in out] == [1.0, 2.5]


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    path = write_table(tmp_path / "x.parquet", [{"completion": "a", "z": math.nan, "logp": [1.0, math.inf]}])
    rescore(path, rewards(picky), tmp_path / "o.jsonl")
    row = json.loads((tmp_path / "o.jsonl").read_text(), parse_constant=pytest.fail)
    assert (row["z"], row["logp"], row["picky"]) == (None, [1.0, None], 1.0)


def test_reasons_stand_beside_missing_scores(tmp_path):
    rows = [{"completion": "ab"}, {"completion": "?"}]
    done = rescore(write_lines(tmp_path / "x.jsonl", rows), rewards(picky), tmp_path / "o.parquet")
    out = read(tmp_path / "o.parquet")
    assert [(row["picky"], row["picky_missing"]) for row in out] == [(2.0, None), (None, "returned None")]
    assert done.rewards["picky"]["missing"] == {"returned None": 1}
    assert done.silent == []


@pytest.mark.parametrize(
    ("policy", "kept"), [("exclude", [0, 1, 2, 3]), ("drop-rollout", [0, 2, 3]), ("drop-group", [2, 3])]
)
def test_policies_for_missing_scores(tmp_path, policy, kept):
    rows = [{"prompt": f"q{i // 2}", "completion": "?" if i == 1 else "a", "n": i} for i in range(4)]
    chosen = [as_reward(picky, missing=policy), as_reward(share)]
    for kind, write in (("jsonl", write_lines), ("parquet", write_table)):
        done = rescore(write(tmp_path / f"x.{kind}", rows), chosen, tmp_path / f"o.{kind}")
        assert [row["n"] for row in read(tmp_path / f"o.{kind}")] == kept
        assert (done.rows, done.kept) == (4, len(kept))
        assert done.rewards["picky"]["scored"] == 3


def test_the_policy_fail_names_the_line_and_keeps_what_was_scored(tmp_path):
    rows = [{"prompt": str(i), "completion": "?" if i == 7 else "a"} for i in range(10)]
    path = write_lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(MissingScore, match=r"x\.jsonl, line 8: returned None"):
        rescore(path, [as_reward(picky, missing="fail")], tmp_path / "o.jsonl", batch_rows=2)
    assert len(list((tmp_path / "o.jsonl.parts").glob("*.parquet"))) == 3
    assert not (tmp_path / "o.jsonl").exists()


def test_a_reward_that_only_fails_stops_early(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", plain(100))
    with pytest.raises(NothingJudged, match=r"'fails' failed on all .* ValueError: no"):
        rescore(path, rewards(fails), tmp_path / "o.jsonl", batch_rows=10)
    few = rescore(path, rewards(fails), batch_rows=100)
    assert few.silent == ["fails"]
    assert few.rewards["fails"]["mean"] is None


# --- going on -----------------------------------------------------------------------------------------------

SLOW = """
import time

def slow(completion, answer):
    time.sleep(0.004)
    return None if completion == "2" else float(completion == answer)

def spread(completion):
    return [float(text) - float(min(completion)) for text in completion]

from concordant.scoring.reward import reward
spread = reward(level="group")(spread)
"""


def score_command(folder, source, out, *more):
    words = [sys.executable, "-m", "concordant", "score", str(source), "--out", str(folder / out)]
    words += ["--reward", f"{folder / 'slow.py'}:slow", "--reward", f"{folder / 'slow.py'}:spread"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return [*words, "--batch-rows", "16", *more], env


def bytes_without_time(path):
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        kept = [name for name in table.column_names if not name.endswith("_seconds")]
        sizes = [
            pq.read_metadata(path).row_group(i).num_rows for i in range(pq.read_metadata(path).num_row_groups)
        ]
        return table.select(kept).to_pylist(), sizes
    return re.sub(rb'("\w+_seconds"): [0-9.e-]+', rb"\1", path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("jsonl", (0, 4, 13)), ("parquet", (7,))])
def test_killed_at_any_point_and_repeated_it_leaves_the_same_file(tmp_path, kind, kills):
    """Killed by signal 9 when more than so many parts are there: while others are being scored and written."""
    (tmp_path / "slow.py").write_text(SLOW)
    rows = [{**row, "n": i} for i, row in enumerate(plain(400, 5))]
    write = write_lines if kind == "jsonl" else write_table
    source = write(tmp_path / f"x.{kind}", rows)
    named = [f"{tmp_path / 'slow.py'}:{name}" for name in ("slow", "spread")]
    rescore(source, named, tmp_path / f"whole.{kind}", batch_rows=16)
    words, env = score_command(tmp_path, source, f"o.{kind}")
    parts = tmp_path / f"o.{kind}.parts"
    done = 0
    for wanted in kills:
        child = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while (
            child.poll() is None
            and len(list(parts.glob("*.parquet"))) <= wanted
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        held = len(list(parts.glob("*.parquet")))
        assert held > max(wanted, done - 1)
        done = held
    assert not (tmp_path / f"o.{kind}").exists()
    ended = subprocess.run([*words, "--json"], env=env, check=True, capture_output=True, text=True)
    told = json.loads(ended.stdout)
    assert told["resumed"] == 20 * done  # groups of five are kept whole
    assert told["rows"] == 400
    assert bytes_without_time(tmp_path / f"o.{kind}") == bytes_without_time(tmp_path / f"whole.{kind}")
    assert not parts.exists()


def interrupted(monkeypatch, after, *arguments, **options):
    """Stop a scoring like a crash would, after so many parts."""
    from concordant.scoring import parts

    original, count = parts.Parts.add, []

    def add(self, part):
        if len(count) == after:
            raise KeyboardInterrupt
        count.append(part)
        original(self, part)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Parts, "add", add)
        rescore(*arguments, **options)


def test_the_report_is_the_same_after_an_interruption(tmp_path, monkeypatch):
    rows = [{**row, "correct": float(i % 5 == 0)} for i, row in enumerate(plain(200))]
    path = write_table(tmp_path / "x.parquet", rows)
    whole = rescore(path, rewards(correct, share), tmp_path / "whole.jsonl", batch_rows=16)
    interrupted(monkeypatch, 5, path, rewards(correct, share), tmp_path / "o.jsonl", batch_rows=16)
    again = rescore(path, rewards(correct, share), tmp_path / "o.jsonl", batch_rows=16)
    assert again.resumed == 5 * 16
    for name in whole.rewards:
        before, after = dict(whole.rewards[name]), dict(again.rewards[name])
        for timed in ("seconds_p50", "seconds_p99"):
            before.pop(timed), after.pop(timed)
        assert after == before


def test_a_fault_far_down_loses_nothing(tmp_path):
    """What stands before the bad line is stored; once the line is mended, the same command goes on from there."""
    lines = [json.dumps(row) for row in plain(100)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([*lines[:90], '{"prompt": ', *lines[91:]]))
    with pytest.raises(DataError, match=r"x\.jsonl, line 91: not JSON"):
        rescore(path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    stored = len(list((tmp_path / "o.jsonl.parts").glob("*.parquet")))
    assert stored >= 8
    path.write_text("\n".join(lines) + "\n")
    done = rescore(path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    assert done.resumed == 8 * stored
    assert [row["n"] for row in read(tmp_path / "o.jsonl")] == list(range(100))


def test_lines_that_changed_are_scored_again(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "x.jsonl", plain(80))
    interrupted(monkeypatch, 8, path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    changed = plain(80)
    changed[43]["completion"] = changed[43]["answer"] = "mended"
    write_lines(path, changed)
    done = rescore(path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    assert done.resumed == 4 * 8  # the part of line 44 is the sixth; the one before it goes too
    assert read(tmp_path / "o.jsonl")[43]["correct"] == 1.0


def test_a_damaged_part_is_made_again(tmp_path, monkeypatch):
    path = write_table(tmp_path / "x.parquet", plain(80))
    interrupted(monkeypatch, 5, path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    part = sorted((tmp_path / "o.jsonl.parts").glob("*.parquet"))[2]
    part.write_bytes(part.read_bytes()[:100])
    assert rescore(path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8).resumed == 16
    assert len(read(tmp_path / "o.jsonl")) == 80


def test_another_file_in_its_place_is_refused(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "x.jsonl", plain(80))
    interrupted(monkeypatch, 5, path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    write_lines(path, plain(80)[1:])
    with pytest.raises(CheckpointError, match="changed from its beginning"):
        rescore(path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    assert len(list((tmp_path / "o.jsonl.parts").glob("*.parquet"))) == 5


@pytest.mark.parametrize("moment", ["replace", "rename"])
def test_killed_while_it_tidies_up(tmp_path, monkeypatch, moment):
    """Before or after the parts are put aside: the output is there, and the same command makes the same one."""
    path = write_lines(tmp_path / "x.jsonl", plain(80))
    target = "os.rename" if moment == "replace" else "shutil.rmtree"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        rescore(path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    done = rescore(path, rewards(correct), tmp_path / "o.jsonl", batch_rows=8)
    assert done.resumed == (80 if moment == "replace" else 0)
    assert len(read(tmp_path / "o.jsonl")) == 80
    assert sorted(each.name for each in tmp_path.iterdir()) == ["o.jsonl", "x.jsonl"]


def other_code():
    @reward(inline=True, name="correct")
    def another(completion, answer):
        return float(completion != answer)

    return rewards(another)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": other_code()}, "reward 'correct' had other code"),
        ({"rewards": rewards(correct, picky)}, "its rewards are correct, not correct, picky"),
        ({"rewards": [as_reward(correct, missing="drop-rollout")]}, "had missing exclude"),
        ({"batch_rows": 9}, "batch rows was 8"),
        ({"seed": 1}, "seed was 0"),
        ({"group": "n"}, "other columns were read"),
        ({"path": "y.parquet"}, "the input file has changed"),
    ],
    ids=["code", "rewards", "policy", "batch", "seed", "group", "input"],
)
def test_parts_of_something_else_are_refused(tmp_path, monkeypatch, change, message):
    write_table(tmp_path / "x.parquet", plain(80))
    write_table(tmp_path / "y.parquet", plain(88))
    out = tmp_path / "o.jsonl"
    interrupted(monkeypatch, 5, tmp_path / "x.parquet", rewards(correct), out, batch_rows=8)
    options = {"batch_rows": 8, "rewards": rewards(correct), "path": "x.parquet", **change}
    path, chosen = tmp_path / options.pop("path"), options.pop("rewards")
    with pytest.raises(CheckpointError, match=message) as caught:
        rescore(path, chosen, out, **options)
    assert "--fresh" in str(caught.value)
    done = rescore(path, chosen, out, fresh=True, **options)
    assert (done.resumed, len(read(out))) == (0, done.rows)


def test_two_at_once_are_refused(tmp_path):
    from concordant.scoring.parts import Parts

    held = Parts(tmp_path / "o.jsonl", {"input": 1})
    with pytest.raises(CheckpointError, match="another process"):
        Parts(tmp_path / "o.jsonl", {"input": 1})
    held.close()
    Parts(tmp_path / "o.jsonl", {"input": 1}).close()


def test_a_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "o.jsonl.parts").mkdir()
    (tmp_path / "o.jsonl.parts" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="in the way"):
        rescore(
            write_lines(tmp_path / "x.jsonl", plain()), rewards(correct), tmp_path / "o.jsonl", fresh=True
        )
    assert (tmp_path / "o.jsonl.parts" / "thesis.tex").read_text() == "years of work"


# --- the cache ----------------------------------------------------------------------------------------------


def test_what_the_cache_knows_needs_no_engine(tmp_path, monkeypatch):
    from concordant.scoring import engine

    path = write_lines(tmp_path / "x.jsonl", plain(50))
    first = rescore(
        path, rewards(correct, picky), tmp_path / "a.jsonl", cache=tmp_path / "c.db", batch_rows=16
    )
    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "__init__", lambda *a, **k: pytest.fail("an engine was made"))
        again = rescore(
            path, rewards(correct, picky), tmp_path / "b.jsonl", cache=tmp_path / "c.db", batch_rows=16
        )
    assert again.rewards["correct"]["cached"] == 50
    assert again.rewards["correct"]["called"] == 0
    assert again.rewards["correct"]["mean"] == first.rewards["correct"]["mean"]
    scores = [[row["correct"] for row in read(tmp_path / name)] for name in ("a.jsonl", "b.jsonl")]
    assert scores[0] == scores[1]
    assert all(row["correct_cached"] for row in read(tmp_path / "b.jsonl"))


def test_only_what_the_cache_lacks_is_asked(tmp_path):
    log = tmp_path / "asked.txt"

    @reward(inline=True)
    def watched(completion):
        with log.open("a") as file:
            file.write(f"{completion}\n")
        return float(len(completion))

    def rows(*texts):
        return [{"prompt": str(i), "completion": text} for i, text in enumerate(texts)]

    path, cache = tmp_path / "x.jsonl", tmp_path / "c.db"
    rescore(write_lines(path, rows("a", "bb")), [watched], cache=cache)
    write_lines(path, rows("a", "ccc", "bb", "ccc"))
    done = rescore(path, [watched], tmp_path / "o.jsonl", cache=cache)
    assert log.read_text().split() == ["a", "bb", "ccc"]
    assert (done.rewards["watched"]["cached"], done.rewards["watched"]["called"]) == (2, 1)
    assert [row["watched"] for row in read(tmp_path / "o.jsonl")] == [1.0, 3.0, 2.0, 3.0]


def test_a_group_comes_from_the_cache_only_as_it_was(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", plain(8))
    rescore(path, rewards(share), cache=tmp_path / "c.db")
    again = rescore(path, rewards(share), tmp_path / "o.jsonl", cache=tmp_path / "c.db")
    assert again.rewards["share"]["cached"] == 8
    write_lines(path, plain(7))
    fewer = rescore(path, rewards(share), tmp_path / "o.jsonl", cache=tmp_path / "c.db")
    assert fewer.rewards["share"]["cached"] == 4
    assert [row["share"] for row in read(tmp_path / "o.jsonl")] == [0.25] * 4 + [1 / 3] * 3


# --- wrong use ----------------------------------------------------------------------------------------------


def test_wrong_use_of_the_function(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", plain())
    cases = [
        (lambda: rescore(path, []), RewardError, "at least one reward"),
        (lambda: rescore(path, rewards(correct, correct)), RewardError, "two rewards are called 'correct'"),
        (lambda: rescore(path, rewards(correct), batch_rows=0), DataError, "at least one row"),
        (lambda: rescore(path, rewards(correct), old={"corect": "n"}), RewardError, "did you mean 'correct'"),
        (
            lambda: rescore(path, rewards(correct), old={"correct": "prompt"}),
            DataError,
            "must be a number, got str",
        ),
        (lambda: rescore(path, [Reward("x", lambda turn: 1.0)]), RewardError, "asks for the field 'turn'"),
        (
            lambda: rescore(path, [as_reward(lambda completion: [1.0], name="x", level="step")]),
            DataError,
            "does not say how many",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


# --- numbers ------------------------------------------------------------------------------------------------

FEW = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, math.nan]), st.sampled_from([0.0, 0.25, 1.0, math.nan])),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(FEW, st.integers(1, 5), st.integers(1, 12))
def test_agreement_equals_the_slow_way(pairs, size, cut):
    """Against loops over all rows and pairs, however the stream is cut (between groups)."""
    new, old = (np.array(side) for side in zip(*pairs, strict=True))
    groups = np.arange(len(pairs)) // size
    told = Agreement()
    step = cut * size
    for start in range(0, len(pairs), step):
        span = slice(start, start + step)
        told.add(start, new[span], old[span], groups[span])
    got = told.as_json()
    both = [i for i in range(len(pairs)) if not math.isnan(new[i] + old[i])]
    assert got["both"] == len(both)
    assert got["only_new"] == sum(math.isnan(o) and not math.isnan(n) for n, o in pairs)
    if both:
        assert got["equal"] == pytest.approx(sum(new[i] == old[i] for i in both) / len(both))
        assert got["mean_difference"] == pytest.approx(sum(new[i] - old[i] for i in both) / len(both))
    ordered = [(i, j) for i, j in combinations(both, 2) if groups[i] == groups[j] and old[i] != old[j]]
    assert got["pairs"] == len(ordered)
    if ordered:
        same = sum((new[i] - new[j]) * (old[i] - old[j]) > 0 for i, j in ordered)
        other = sum((new[i] - new[j]) * (old[i] - old[j]) < 0 for i, j in ordered)
        assert (got["order_kept"], got["order_reversed"]) == (same / len(ordered), other / len(ordered))
    worst = sorted((i for i in both if new[i] != old[i]), key=lambda i: (-abs(new[i] - old[i]), i))[:5]
    assert [each["row"] for each in got["differ_most"]] == worst


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
def test_rank_correlation_equals_scipy(pairs):
    x, y = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    got = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert got is None
    else:
        assert got == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_the_sample_is_uniform_and_does_not_depend_on_the_cut():
    rows = np.arange(50_000)
    whole, pieces = Sample(1000), Sample(1000)
    whole.add(rows, rows.astype(float), rows.astype(float))
    for part in np.array_split(rows, 77):
        pieces.add(part, part.astype(float), part.astype(float))
    for each in (whole, pieces):
        each._trim()
        assert len(each.held) == 1000
    assert set(whole.held[:, 1]) == set(pieces.held[:, 1])
    assert abs(whole.held[:, 1].mean() - 25_000) < 4 * 50_000 / math.sqrt(12 * 1000)


def test_tally_by_hand():
    tally = Tally()
    values = np.array([1.0, 1.0, 0.0, 1.0, math.nan, 0.5, 2.0, math.nan])
    groups = np.array([0, 0, 1, 1, 1, 5, 6, 6])
    tally.add(
        values,
        np.full(8, 0.01),
        np.array([1, 0, 1, 1, 2, 0, 0, 1]),
        np.array([0, 1, 0, 0, 0, 1, 1, 0]),
        groups,
    )
    told = tally.as_json()
    assert (told["rows"], told["scored"], told["called"], told["cached"]) == (8, 6, 5, 3)
    assert told["mean"] == pytest.approx(5.5 / 6)
    assert told["sd"] == pytest.approx(np.std([1, 1, 0, 1, 0.5, 2], ddof=1))
    assert (told["groups"], told["tied_groups"]) == (2, 0.5)  # of groups with two judged members
    assert told["seconds_p50"] == pytest.approx(0.01, rel=0.01)


def test_moments_of_a_stream_are_those_of_the_whole():
    values = 1e6 + np.random.default_rng(0).normal(size=10_001)
    moments = Moments()
    for part in np.array_split(values, 13):
        moments.add(part)
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.sd == pytest.approx(values.std(ddof=1), rel=1e-9)


def test_latencies_are_within_one_per_cent():
    seconds = np.random.default_rng(0).lognormal(-3, 2, size=20_001)
    latency = Latency()
    for part in np.array_split(seconds, 7):
        latency.add(part)
    for share_ in (0.5, 0.99):
        assert latency.quantile(share_) == pytest.approx(np.quantile(seconds, share_), rel=0.011)
    assert Latency().quantile(0.5) is None


def test_blocks_of_a_file_with_one_large_row_group(tmp_path):
    path = write_table(tmp_path / "x.parquet", plain(5000), row_group_size=3000)
    source = open_rollouts(path)
    for start in (0, 1, 2999, 3000, 3001, 4999):
        blocks = list(source.blocks(["n"], Start(row=start)))
        assert [n for block in blocks for n in block.columns["n"]] == list(range(start, 5000))
        assert all(a.first + a.size == b.first for a, b in pairwise(blocks))
