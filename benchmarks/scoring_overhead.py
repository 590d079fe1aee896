"""What the scoring engine adds to a cheap reward: microseconds a row, and the ratio to a plain loop over the function.

    python benchmarks/scoring_overhead.py [--rows N] [--rounds N] [--json PATH]

The reward looks for the answer in the completion. Times are wall times of a whole pass over distinct rows: planning,
sending, calling, reading back. `plain` is the loop that a trainer without an engine runs. Each round measures all ways
in turn; the shortest time of each counts, and the ratio of each round is told. Beside the wall time stands the
processor time of the parent and its workers together, which does not depend on what else the machine does; the limit
is on that.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from concordant.scoring.engine import Engine
from concordant.scoring.outcome import Rows
from concordant.scoring.reward import Reward, load_reward

GROUP = 8
WAYS = ("plain", "inline", "workers", "workers, group", "workers, async", "equal rows")
LIMIT_US = 50.0


def contains(completion: str, answer: str) -> float:
    return float(answer in completion)


def contains_group(completion: list[str], answer: list[str]) -> list[float]:
    return [float(one in text) for text, one in zip(completion, answer, strict=True)]


async def contains_async(completion: str, answer: str) -> float:
    return float(answer in completion)


def make_rows(count: int, distinct: bool) -> Rows:
    """Completions of about 200 characters in groups of eight."""
    texts = [f"<think>{i if distinct else i % 10:08d} {'12+7=19; ' * 20}</think>" for i in range(count)]
    return Rows(
        {"completion": texts, "answer": [str(i % 97) for i in range(count)]},
        [i // GROUP for i in range(count)],
    )


def rewards() -> dict[str, Reward]:
    def load(name: str, **options: Any) -> Reward:
        return load_reward(f"{__file__}:{name}", **options)

    return {
        "inline": load("contains", inline=True),
        "workers": load("contains"),
        "workers, group": load("contains_group", level="group"),
        "workers, async": load("contains_async"),
        "equal rows": load("contains"),
    }


def below(process: int) -> list[int]:
    """A process and all that it started."""
    started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(inner for child in map(int, started) for inner in below(child))]


def processor_seconds() -> float:
    """Processor time of this process and all its workers so far."""
    total = time.process_time()
    for process in below(os.getpid())[1:]:
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
        total += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return total


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of a run."""
    before, start = processor_seconds(), time.perf_counter()
    run()
    return time.perf_counter() - start, processor_seconds() - before


def measure(count: int, rounds: int, workers: int) -> dict[str, list[tuple[float, float]]]:
    """Return microseconds a row of every round, by way: wall and processor time."""
    rows, repeated = make_rows(count, True), make_rows(count, False)
    columns = list(zip(rows.fields["completion"], rows.fields["answer"], strict=True))
    expected = [contains(*pair) for pair in columns]
    engines = {way: Engine([reward], workers) for way, reward in rewards().items()}
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    try:
        for way, engine in engines.items():
            (outcomes,) = engine.run(
                rows if way != "equal rows" else repeated
            ).values()  # warms the workers up
            assert way == "equal rows" or [o.value for o in outcomes] == expected
        for _ in range(rounds):
            found["plain"].append(seconds(lambda: [contains(c, a) for c, a in columns]))
            for way, engine in engines.items():
                given = rows if way != "equal rows" else repeated
                found[way].append(seconds(lambda e=engine, g=given: e.run(g)))  # type: ignore[misc]
    finally:
        for engine in engines.values():
            engine.close()
    return {
        way: [(1e6 * wall / count, 1e6 * own / count) for wall, own in times] for way, times in found.items()
    }


def main() -> None:
    """Measure, print, write; fail if a worker's row costs more than `LIMIT_US`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.rows, options.rounds, options.workers)
    plain = [wall for wall, _ in found["plain"]]
    told: dict[str, Any] = {}
    for way, times in found.items():
        walls, own = [wall for wall, _ in times], statistics.median(cpu for _, cpu in times)
        told[way] = {
            "wall_microseconds": min(walls),
            "processor_microseconds": own,
            "over_plain": min(walls) / min(plain),
            "over_plain_by_round": [wall / base for wall, base in zip(walls, plain, strict=True)],
        }
        print(
            f"{way:16} {min(walls):7.2f} us a row, {min(walls) / min(plain):6.1f} x plain; "
            f"{own:6.2f} us of processor time"
        )
    if options.json:
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), "workers": options.workers}
        options.json.write_text(
            json.dumps({"machine": machine, "rows": options.rows, "ways": told}, indent=1) + "\n"
        )
    worst = told["workers"]["processor_microseconds"]
    if worst > LIMIT_US:
        raise SystemExit(f"{worst:.0f} microseconds of processor time a row, more than {LIMIT_US:.0f}")


if __name__ == "__main__":
    main()
