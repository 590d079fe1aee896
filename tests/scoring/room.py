"""Rewards that tests of the engine load by path, as a user's file."""

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concordant.scoring.reward import Context, TransientError, Verdict, reward


def note(file: str, text: Any) -> None:
    """Append a line; short ones are written whole."""
    with open(file, "a") as lines:
        lines.write(f"{text}\n")


def counted(completion: str, file: str) -> float:
    note(file, completion)
    return float(len(completion))


@reward(cache=False)
def uncached(completion: str, file: str) -> float:
    return counted(completion, file)


def told(completion: str, context: Context) -> float:
    return context.rng.random() + context.step


@reward(level="group", timeout=20)
def largest(completion: list[str]) -> list[float]:
    """1.0 for the longest of the group; a group in pieces would have several."""
    most = max(map(len, completion))
    return [float(len(text) == most) for text in completion]


@reward(level="batch")
def rank(completion: list[str]) -> list[float]:
    return [float(sorted(completion).index(text)) for text in completion]


@reward(timeout=0.5)
def spawns(completion: str, file: str) -> float:
    """Start two children, one of them detached in a session of its own, and hang."""
    if completion == "hang":
        for session in (False, True):
            note(file, subprocess.Popen(["sleep", "300"], start_new_session=session).pid)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                note(file, os.getpid())
                time.sleep(300)
            os._exit(0)
        time.sleep(300)
    return 1.0


def stamped(completion: str, file: str) -> float:
    note(file, time.monotonic())
    return 1.0


def alone(completion: str, file: str) -> float:
    note(file, f"in {time.monotonic()}")
    time.sleep(0.02)
    note(file, f"out {time.monotonic()}")
    return 1.0


def pauses(completion: str) -> float:
    time.sleep(0.1)
    return 1.0


@reward(retries=2)
def flaky(completion: str, file: str) -> float:
    note(file, completion)
    tries = Path(file).read_text().split().count(completion)
    if tries <= int(completion):
        raise TransientError(f"try {tries}")
    return float(tries)


@reward(timeout=0.6)
async def loops(completion: str) -> float:
    """`block` keeps the loop busy for good, `sub` does so in a task of its own, `long` for most of the limit."""
    if completion == "block":
        while True:
            pass
    if completion == "sub":
        await asyncio.create_task(_busy())
    if completion == "long":
        time.sleep(0.5)
    if completion == "stubborn":
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(60)
    await asyncio.sleep(0.2)
    return 1.0


async def _busy() -> None:
    while True:
        pass


async def quits(completion: str) -> float:
    if completion == "cancelled":
        raise asyncio.CancelledError
    if completion == "exit":
        sys.exit(4)
    return 1.0


def forges(completion: str) -> float:
    """Speak to the parent in the worker's name, as code that took it over would."""
    import gc

    worker = next(thing for thing in gc.get_objects() if type(thing).__name__ == "Worker")
    if completion == "failed":
        worker.say({"failed": "stop the run"})
    if completion == "inf":
        worker.say({"done": [[worker.job, 0.0, 1, [float("inf")]]]})
    if completion == "garbage":
        worker.channel.sendall(b"\xff" * 4096)
    time.sleep(0.1)
    return 1.0


def heavy(completion: str) -> float:
    return float("torch" in sys.modules)


def prints(completion: str) -> float:
    print("said", completion)
    os.write(2, b"and to the other stream\n")
    return 1.0


def trl(
    prompts: Any, completions: Any, log_extra: Any, log_metric: Any, trainer_state: Any = 1, **rest: Any
) -> Any:
    log_extra("column", completions)
    log_metric("name", 1.0)
    assert trainer_state is None
    return [float(len(rest)) for _ in completions]


def judged(completion: str) -> Verdict | None:
    known = {
        "sure": Verdict(0.5, 0.9, "judge", {"why": "it fits", "odd": {1}}),
        "declines": Verdict(None, detail={"reason": "two readings"}),
        "mute": Verdict(None),
        "overconfident": Verdict(1.0, 1.5),
        "broken": Verdict(float("nan"), 0.5),
    }
    return known.get(completion)


@reward(level="segment")
def by_segment(completion: str) -> Any:
    return {"two": [1.0, None], "three": [1, 2, 3], "none": [None, None], "bad": [1.0, "x"]}[completion]


@reward(level="step")
def by_step(completion_ids: list[int]) -> list[float]:
    return [float(token) for token in completion_ids]


@reward(level="check")
def by_check(completion: str) -> Any:
    return [float(c == "1") for c in completion] or None


def odd(completion: str) -> float:
    """Hang on some completions, for a run in a loop."""
    if len(completion) % 3 == 1:
        while True:
            pass
    return float(len(completion))


@dataclass(frozen=True)
class Above:
    """A parameterised reward."""

    length: int

    def __call__(self, completion: str) -> float:
        return float(len(completion) > self.length)


above_one = Above(1)


def pixel(image: Any, place: int) -> float:
    return float(image.flat[place])


def mean(image: Any) -> float:
    return float(image.mean())


def brightness(image: Any) -> float:
    return float(image.mean())


@reward(level="group")
def brightest(image: list[Any]) -> list[float]:
    means = [each.mean() for each in image]
    return [float(one == max(means)) for one in means]


@reward(level="pair", timeout=0.5)
def longer(completion_left: str, completion_right: str, prompt: str = "") -> float | None:
    """Who is longer; hangs, raises or says nothing on some."""
    if completion_left == "hang":
        time.sleep(60)
    if "raise" in (completion_left, completion_right):
        raise ValueError("no")
    if "mute" in (completion_left, completion_right):
        return None
    a, b = len(completion_left), len(completion_right)
    return float(a > b) if a != b else 0.5


@reward(level="pair")
def leans_left(completion_left: str, completion_right: str, file: str) -> float:
    """A judge with a pure position bias."""
    note(file, f"{completion_left} {completion_right}")
    return 1.0
