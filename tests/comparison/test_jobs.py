"""The pool of runs: order, failures, logs, interruption; with small scripts in place of training."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from concordant.comparison import jobs
from concordant.comparison.forks import Server
from concordant.comparison.jobs import Job, parse_seeds, read_summary, run_all, steps_done
from concordant.core.errors import ConcordantError, ConfigError

ENTRY = "tests.comparison.scripted:main"


@pytest.fixture
def scripted(monkeypatch):
    """Let an arm's name choose the script that stands for its training."""
    monkeypatch.setattr(jobs, "Server", functools.partial(Server, entry=ENTRY, preload=()))
    monkeypatch.setattr(Job, "words", lambda job: [job.arm, str(job.folder)])


def job(tmp_path, arm, seed=0):
    return Job("fake", arm, seed, "smoke", tmp_path)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-2", (0, 1, 2)), ("4", (4,)), ("0,3,5", (0, 3, 5)), ("0-1,1,7", (0, 1, 7)), ("2-2", (2,))],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-0", "0..2", "0,,1"])
def test_seeds_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="seeds"):
        parse_seeds(text)


def test_a_failing_run_is_reported_and_the_others_go_on(scripted, tmp_path):
    wanted = [job(tmp_path, arm) for arm in ("raises", "good", "silent", "killed", "exits")]
    outcomes = run_all(wanted, workers=2)
    assert [outcome.job for outcome in outcomes] == wanted
    assert [outcome.status for outcome in outcomes] == ["failed", "ran", "failed", "failed", "failed"]
    assert "exit code 1" in outcomes[0].error
    assert "the loss is NaN" in outcomes[0].error
    assert "no summary.json" in outcomes[2].error
    assert "SIGKILL" in outcomes[3].error
    assert "exit code 2" in outcomes[4].error
    assert outcomes[1].summary == {"metrics": {"a": 1}}


def test_one_thread_a_process(scripted, tmp_path):
    (outcome,) = run_all([job(tmp_path, "threads")])
    assert outcome.summary == {"n": "1"}


def test_no_more_processes_than_workers(scripted, tmp_path):
    running: set[int] = set()
    most = []

    def watch(which, status):
        (running.add if status == "running" else running.discard)(which.seed)
        most.append(len(running))

    assert len(run_all([job(tmp_path, "good", seed) for seed in range(4)], workers=1, watch=watch)) == 4
    assert max(most) == 1


def test_an_interruption_ends_the_children(scripted, tmp_path):
    wanted = [job(tmp_path, "slow", 0), job(tmp_path, "slow", 1)]
    seen = set()

    def watch(which, status):
        if (which.folder / "pid").exists():
            seen.add(int((which.folder / "pid").read_text()))
        if len(seen) == 2 and signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all(wanted, workers=2, watch=watch)
    assert time.monotonic() - begun < 30
    assert not any(map(alive, seen))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_children_end_when_the_client_is_killed(tmp_path):
    """Nobody is left to ask them to: the server sees the end of its input."""
    script = (
        "import time; from pathlib import Path; from concordant.comparison.forks import Server; "
        f"s = Server({{}}, {ENTRY!r}, ()); s.start(['slow', {str(tmp_path)!r}], Path({str(tmp_path / 'log')!r})); "
        "time.sleep(60)"
    )
    client = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: (tmp_path / "pid").exists())
    pid = int((tmp_path / "pid").read_text())
    client.kill()
    client.wait()
    wait_for(lambda: not alive(pid))


def wait_for(fact, seconds=30.0):
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_that_cannot_start_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "Server", functools.partial(Server, entry="no.such.module:main", preload=()))
    with pytest.raises(ConcordantError, match=r"ended by itself[\s\S]*No module named 'no'"):
        run_all([job(tmp_path, "good")])


def test_an_unwritable_folder_is_named(scripted, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .*file.*--out"):
        run_all([job(tmp_path / "file", "good")])


def test_no_workers(tmp_path):
    with pytest.raises(ConfigError, match="--jobs"):
        run_all([], workers=0)


def test_progress_is_read_from_the_last_whole_line(tmp_path):
    assert steps_done(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert steps_done(tmp_path) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_summary_cut_short_is_none(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    assert read_summary(tmp_path) is None
