"""Runs of a comparison as processes of their own: one thread each, a few at a time, each with a log."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from concordant.comparison.forks import Child, Server
from concordant.core.errors import ConfigError

Status = Literal["waiting", "running", "ran", "reused", "failed"]

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "PYTHONUNBUFFERED": "1",
}
_TAIL = 20


@dataclass(frozen=True)
class Job:
    """One arm on one seed."""

    slug: str
    arm: str
    seed: int
    profile: str
    out: Path
    arguments: tuple[str, ...] = ()
    """Further arguments of `concordant run`, passed on as they are."""
    fresh: bool = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / self.slug / self.arm / f"seed{self.seed}"

    @property
    def log(self) -> Path:
        """What the process printed; beside the folder, so that a fresh start keeps it."""
        return self.folder.with_name(f"seed{self.seed}.log")

    @property
    def label(self) -> str:
        """How the job is named to the user."""
        return f"{self.arm} seed {self.seed}"

    def words(self) -> list[str]:
        """Return the arguments of the command line that runs it."""
        words = ["run", self.slug, "--arm", self.arm, "--seed", str(self.seed)]
        words += ["--profile", self.profile, "--out", str(self.out), *self.arguments]
        return [*words, "--fresh" if self.fresh else "--resume", "--json"]


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    status: Status
    summary: Mapping[str, Any] | None = None
    error: str = ""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0-2`, `0,3,5` or `0-1,7`."""
    seeds: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"--seeds takes a list or a range like 0-2 or 0,3,5; got {text!r}")
        stop = int(last) if dash else int(first)
        if stop < int(first):
            raise ConfigError(f"--seeds: the range {piece.strip()!r} is empty; write {stop}-{first}")
        seeds.extend(range(int(first), stop + 1))
    return tuple(dict.fromkeys(seeds))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return a finished run's summary; None if there is none or it cannot be read."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return summary if isinstance(summary, dict) else None


def steps_done(folder: Path) -> int:
    """Return how many steps a run has logged, from the last line of its metrics."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError, TypeError, AttributeError):
            return int(json.loads(line).get("step", 0))
    return 0


def tail(log: Path, lines: int = _TAIL) -> str:
    """Return the last lines of a log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(text.rstrip().splitlines()[-lines:]) or "(the process printed nothing)"


def run_all(
    jobs: Sequence[Job], workers: int = 2, watch: Callable[[Job, Status], None] | None = None
) -> list[Outcome]:
    """Run jobs, at most `workers` at a time; a failing job does not stop the others.

    Args:
        jobs: what to run, in this order.
        workers: how many processes at once.
        watch: called about five times a second for every running job, and at each change of status.

    Returns:
        One outcome a job, in the order of `jobs`. When this process is interrupted, its children are ended first.
    """
    if workers < 1:
        raise ConfigError(f"--jobs must be at least 1, got {workers}")
    tell = watch or (lambda job, status: None)
    if not jobs:
        return []
    for job in jobs:
        _prepare(job)
    waiting, done = list(jobs), dict[Job, Outcome]()
    running: dict[Job, Child] = {}
    with _stoppable(), contextlib.closing(Server(ONE_THREAD)) as server:
        while waiting or running:
            while waiting and len(running) < workers:
                running[waiting[0]] = server.start(waiting[0].words(), waiting[0].log)
                tell(waiting.pop(0), "running")
            server.update(0.2)
            for job, child in list(running.items()):
                if child.code is None:
                    tell(job, "running")
                    continue
                del running[job]
                done[job] = _finish(job, child.code)
                tell(job, done[job].status)
    return [done[job] for job in jobs]


def _prepare(job: Job) -> None:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        if job.fresh:  # so that progress is not read from the earlier run
            (job.folder / "metrics.jsonl").unlink(missing_ok=True)
        job.log.touch()
    except OSError as error:
        raise ConfigError(
            f"cannot write to {job.log.parent}: {error.strerror}; choose another --out"
        ) from None


def _finish(job: Job, code: int) -> Outcome:
    summary = read_summary(job.folder)
    if code == 0 and summary is not None:
        return Outcome(job, "ran", summary)
    how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == 0:
        how = "it left no summary.json"
    return Outcome(job, "failed", error=f"{how}; last lines of {job.log}:\n{tail(job.log)}")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let a request to stop end the runs as an interruption does (they resume from their checkpoints)."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: leave signals alone
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
