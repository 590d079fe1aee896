"""A process that imports the heavy modules once and forks a fresh child for each job.

Importing torch and transformers takes longer than a short run. The server has one thread and runs no job itself, so a
child starts from a clean state, as a new process would.

    client -> server, one JSON line a job:   {"job": 3, "words": ["run", "gdpo"], "log": "runs/gdpo/gdpo/seed0.log"}
    server -> client, two JSON lines a job:  {"job": 3, "pid": 4711}, later {"job": 3, "code": 0}

When the client closes its end, or dies, the server ends its children and then itself.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from concordant.core.errors import ConcordantError

ENTRY = "concordant.cli.app:main"
PRELOAD = (
    "concordant.experiment",
    "concordant.loops.train",
    "concordant.policies.lm",
    "concordant.comparison.revision",
    "reasoning_gym",
    "transformers.models.auto.modeling_auto",  # these two load what transformers itself puts off
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3",  # the architecture of the shipped bases
)


@dataclass
class Child:
    """A job's process as the client knows it."""

    pid: int = 0
    code: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal to the child if it lives."""
        if self.pid and self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass
class Server:
    """The client's side: start jobs, learn how they ended."""

    environment: Mapping[str, str]
    entry: str = ENTRY
    preload: Sequence[str] = PRELOAD
    children: dict[int, Child] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self._process = subprocess.Popen(
            [sys.executable, "-m", "concordant.comparison.forks", self.entry, *self.preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **self.environment},
        )
        self._buffer = b""

    def start(self, words: Sequence[str], log: Path) -> Child:
        """Ask for a job; its pid is known once `update` has seen the answer."""
        number = len(self.children)
        self.children[number] = Child()
        line = json.dumps({"job": number, "words": list(words), "log": str(log)})
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        return self.children[number]

    def update(self, timeout: float) -> None:
        """Wait for news for at most `timeout` seconds and take it in."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], timeout)[0]:
            return
        data = os.read(pipe, 65536)
        if not data:
            raise self._dead()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            news = json.loads(line)
            child = self.children[news["job"]]
            child.pid, child.code = news.get("pid", child.pid), news.get("code")

    def _dead(self) -> ConcordantError:
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip() or "(it printed nothing)"
        return ConcordantError(
            f"the process that starts the runs ended by itself (exit code {code}):\n{text[-2000:]}"
        )

    def close(self, patience: float = 10.0) -> None:
        """End the children, then the server; children that do not go within `patience` seconds are killed."""
        for child in self.children.values():
            child.signal(signal.SIGTERM)
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            for child in self.children.values():
                child.signal(signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def serve(entry: str, preload: Sequence[str]) -> None:
    """Import, then fork a child for each line of standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides what an interruption means
    module, _, name = entry.partition(":")
    for each in (module, *preload):
        importlib.import_module(each)
    main = getattr(sys.modules[module], name)
    jobs: dict[int, int] = {}
    buffer, open_ = b"", True
    while open_ or jobs:
        if open_ and select.select([0], [], [], 0.02)[0]:
            data = os.read(0, 65536)
            open_ = bool(data)
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                job = json.loads(line)
                pid = _fork(main, job["words"], job["log"])
                jobs[pid] = job["job"]
                _say({"job": job["job"], "pid": pid})
            if not open_:
                for pid in jobs:
                    os.kill(pid, signal.SIGTERM)
        _reap(jobs, wait=not open_)


def _reap(jobs: dict[int, int], wait: bool) -> None:
    while jobs:
        pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
        if not pid:
            return
        _say({"job": jobs.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _say(news: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the client is gone; end of input follows
        os.write(1, json.dumps(news).encode() + b"\n")


def _fork(main: Any, words: Sequence[str], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, place in ((nothing, 0), (target, 1), (target, 2)):
            os.dup2(source, place)
        main(list(words))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
    os._exit(0)  # taking thousands of modules down one by one would only make the client wait
