"""Everything that a reward can do wrong, and what becomes of it: of the faulty row, of the healthy ones, of the time.

    python benchmarks/fault_matrix.py [--json PATH] [--workers N] [--timeout S]

Each cell scores 16 rows in 4 groups, two of the rows faulty, in different groups. It passes if the run survives, no
faulty score becomes a number, every healthy score is right, and the wall time is at most that of the slowest healthy
rows plus, for each hanging job, the time limit and one second, spread over the workers. A faulty row of a reward of
groups costs its whole group, unless the fault is in the row's own value.
"""

import argparse
import asyncio
import ctypes
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from concordant.scoring.engine import Engine
from concordant.scoring.outcome import Rows
from concordant.scoring.reward import Reward, load_reward

GROUP, ROWS, FAULTY = 4, 16, (5, 10)
MEMORY = 256
SLOW, TRIES = 0.15, 2

# fault: reason, and whether it is that of the value alone, so that in a group only its own row is lost
FAULTS: dict[str, tuple[str, bool]] = {
    "raise": (r"raised ValueError: broken", False),
    "hang": (r"timed out after \S+ s", False),
    "hang in C": (r"timed out after \S+ s", False),
    "memory": (r"raised MemoryError", False),
    "exit": (r"worker exited with code 3", False),
    "segfault": (r"killed: worker ended by signal SIGSEGV", False),
    "length": (r"returned (list, not a number|\d values for \d completions)", False),
    "type": (r"returned str, not a number", True),
    "NaN": (r"returned nan", True),
    "inf": (r"returned -?inf", True),
    "None": (r"returned None", True),
    "unpicklable": (r"returned function, not a number", True),
    "slow": ("", True),
    "flaky": ("", True),
}
HANGING = ("hang", "hang in C")
STYLES, LEVELS = ("sync", "async", "trl"), ("rollout", "group")

# ---- the rewards, which worker processes import from this file -------------------------------------------------

_seen: dict[str, int] = {}


def act(completion: str) -> Any:
    """Score `fault number` with the number, or do what the first word says."""
    fault, _, number = completion.rpartition(" ")
    score = float(number)
    if fault == "raise":
        raise ValueError("broken")
    if fault == "hang":
        while True:
            pass
    if fault == "hang in C":
        return 9**9**9**9
    if fault == "memory":
        held = []
        while True:
            held.append(bytes(1 << 24))  # never touched: what ends it is the limit, not the clock
    if fault == "exit":
        os._exit(3)
    if fault == "segfault":
        return ctypes.string_at(0)
    if fault == "length":
        return [score, score]
    if fault == "unpicklable":
        return lambda: score
    if fault == "flaky":
        _seen[completion] = _seen.get(completion, 0) + 1
        if _seen[completion] <= TRIES:
            raise ConnectionError("try again")
    return {"type": "1.0", "NaN": float("nan"), "inf": float("-inf"), "None": None}.get(fault, score)


def all_of(completions: Sequence[str]) -> list[Any]:
    """Score a list; the wrong length is that of the whole."""
    values = [act(completion) for completion in completions]
    return values[:-1] if any(isinstance(value, list) for value in values) else values


def naps(completions: Sequence[str]) -> float:
    return SLOW * sum(completion.startswith("slow") for completion in completions)


def sync_rollout(completion: str) -> Any:
    time.sleep(naps([completion]))
    return act(completion)


async def async_rollout(completion: str) -> Any:
    await asyncio.sleep(naps([completion]))
    return act(completion)


def sync_group(completion: list[str]) -> Any:
    time.sleep(naps(completion))
    return all_of(completion)


async def async_group(completion: list[str]) -> Any:
    await asyncio.sleep(naps(completion))
    return all_of(completion)


def trl_rollout(prompts: list[str], completions: list[str], **columns: Any) -> Any:
    time.sleep(naps(completions))
    return all_of(completions)


trl_group = trl_rollout

# ---- the matrix --------------------------------------------------------------------------------------------------


def make_reward(style: str, level: str, timeout: float) -> Reward:
    """Load the reward of a column of the matrix as a user would."""
    return load_reward(f"{__file__}:{style}_{level}", level=level, timeout=timeout)


def run_cell(
    engine: Engine, fault: str, style: str, level: str, workers: int, timeout: float
) -> dict[str, Any]:
    """Score the rows of one cell; return what came of it."""
    completions = [f"{fault if row in FAULTY else 'ok'} {row}" for row in range(ROWS)]
    rows = Rows({"prompt": ["p"] * ROWS, "completion": completions}, [row // GROUP for row in range(ROWS)])
    start = time.perf_counter()
    (outcomes,) = engine.run(rows).values()
    seconds = time.perf_counter() - start
    reason, own = FAULTS[fault]
    spread = {row // GROUP for row in FAULTY}
    lost = {
        row for row in range(ROWS) if (row in FAULTY if own or level == "rollout" else row // GROUP in spread)
    }
    if not reason:
        lost = set()
    hanging = len(FAULTY) if fault in HANGING else 0
    healthy = SLOW * len(FAULTY) if fault == "slow" else 0.0
    pattern = re.compile(reason)
    return {
        "fault": fault, "style": style, "level": level,
        "faulty_numbers": sum(outcomes[row].value is not None for row in lost),
        "wrong_reasons": sum(pattern.fullmatch(outcomes[row].reason) is None for row in lost),
        "healthy_wrong": sum(outcomes[row].value != float(row) for row in range(ROWS) if row not in lost),
        "reason": next((outcomes[row].reason for row in sorted(lost)), ""),
        "seconds": round(seconds, 3),
        "allowed": round(1.0 + healthy + hanging * (timeout + 1.0) / workers, 3),
    }  # fmt: skip


def passes(cell: dict[str, Any]) -> bool:
    """Whether a cell is as it should be."""
    clean = not (cell["faulty_numbers"] or cell["wrong_reasons"] or cell["healthy_wrong"])
    return clean and cell["seconds"] <= cell["allowed"]


def run_matrix(workers: int, timeout: float) -> list[dict[str, Any]]:
    """Run all cells; the workers of a style and level are warm after its first."""
    cells = []
    for style in STYLES:
        for level in LEVELS:
            with Engine([make_reward(style, level, timeout)], workers, memory=MEMORY) as engine:
                engine.run(Rows({"prompt": ["p"], "completion": ["ok 1"]}))
                cells += [run_cell(engine, fault, style, level, workers, timeout) for fault in FAULTS]
    return cells


def show(cells: list[dict[str, Any]]) -> None:
    """Print seconds by fault, style and level, with a mark at what failed."""
    columns = [(style, level) for style in STYLES for level in LEVELS]
    by_place = {(cell["fault"], cell["style"], cell["level"]): cell for cell in cells}
    print(f"{'':12}" + "".join(f"{style + ' ' + level:>16}" for style, level in columns))
    for fault in FAULTS:
        line = [by_place[fault, *column] for column in columns]
        marks = (f"{cell['seconds']:.3f} {'ok' if passes(cell) else 'NO'}" for cell in line)
        print(f"{fault:12}" + "".join(f"{mark:>16}" for mark in marks) + f"   {line[0]['reason']}")


def main() -> None:
    """Run the matrix, print it, write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1.0)
    options = parser.parse_args()
    cells = run_matrix(options.workers, options.timeout)
    show(cells)
    good = sum(map(passes, cells))
    print(
        f"{good} of {len(cells)} cells as they should be; {options.workers} workers, {options.timeout} s a call"
    )
    if options.json:
        machine = {"python": platform.python_version(), "cores": os.cpu_count()}
        told = {"machine": machine, "workers": options.workers, "timeout": options.timeout, "passed": good}
        options.json.write_text(json.dumps({**told, "cells": cells}, indent=1) + "\n")
    if good < len(cells):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
