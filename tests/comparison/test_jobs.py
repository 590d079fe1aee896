"""The pool of runs: order, failures, logs, interruption; with small scripts in place of training."""

import os
import signal
import sys
import threading
import time

import pytest

from concordant.comparison import jobs
from concordant.comparison.jobs import Job, parse_seeds, read_summary, run_all, steps_done
from concordant.core.errors import ConfigError

WRITE = "import json, pathlib, sys; f = pathlib.Path(sys.argv[1]); f.mkdir(parents=True, exist_ok=True); "
FINE = WRITE + "(f / 'summary.json').write_text(json.dumps({'metrics': {'a': 1}}))"


@pytest.fixture
def scripted(monkeypatch):
    """Let an arm's name choose the script that stands for its training."""
    scripts = {
        "good": FINE,
        "raises": "print('step 1'); raise ValueError('the loss is NaN')",
        "silent": "pass",
        "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "threads": FINE.replace(
            "{'metrics': {'a': 1}}", "{'n': __import__('os').environ['OMP_NUM_THREADS']}"
        ),
        "slow": "import time; time.sleep(60)",
    }
    monkeypatch.setattr(Job, "command", lambda job: [sys.executable, "-c", scripts[job.arm], str(job.folder)])


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
    wanted = [job(tmp_path, arm) for arm in ("raises", "good", "silent", "killed")]
    outcomes = run_all(wanted, workers=2)
    assert [outcome.job for outcome in outcomes] == wanted
    assert [outcome.status for outcome in outcomes] == ["failed", "ran", "failed", "failed"]
    assert "exit code 1" in outcomes[0].error
    assert "the loss is NaN" in outcomes[0].error
    assert "no summary.json" in outcomes[2].error
    assert "SIGKILL" in outcomes[3].error
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


def test_an_interruption_ends_the_children(scripted, tmp_path, monkeypatch):
    started = []
    popen = jobs.subprocess.Popen

    def remember(*words, **named):
        started.append(popen(*words, **named))
        return started[-1]

    monkeypatch.setattr(jobs.subprocess, "Popen", remember)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([job(tmp_path, "slow", 0), job(tmp_path, "slow", 1)], workers=2)
    assert time.monotonic() - begun < 10
    assert [process.poll() for process in started] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


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
