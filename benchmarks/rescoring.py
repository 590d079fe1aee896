"""How fast stored rollouts are scored again, and in how much memory: ratios of one run on this machine.

    python benchmarks/rescoring.py [--json PATH] [--rows N] [--folder PATH]

1. Scoring a Parquet file (prompt, completion, answer, an old score; groups of 8) with a cheap reward to a new Parquet
   file: without a cache, with an empty one, and with everything in the cache; beside it the floor, which is to read the
   file and write it again with pyarrow. Whole calls, from a process of their own, start included; and the processor
   time of a row, workers included, which other work on the machine changes less.
2. Peak memory of the process and its children (resident, summed, sampled every 20 ms) at a tenth of the rows and at
   all.
3. What a row costs to name and to look up, against json.dumps and hashlib one row at a time.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

REWARD = """
def correct(completion, answer):
    return float(completion.rsplit(" ", 1)[-1] == answer)
"""
FLOOR = """
import sys
import pyarrow.parquet as pq
source = pq.ParquetFile(sys.argv[1])
with pq.ParquetWriter(sys.argv[2], source.schema_arrow, compression="zstd") as writer:
    for batch in source.iter_batches(32768):
        writer.write_batch(batch)
"""


def make(path: Path, rows: int) -> Path:
    """Rollouts of some 120 characters; one in three answers is wrong."""
    names = ("prompt", "completion", "answer", "correct")
    schema = pa.schema([(name, pa.float64() if name == "correct" else pa.string()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 50_000):
            span = range(start, min(start + 50_000, rows))
            sums = [i // 8 + i // 8 % 97 for i in span]
            said = [
                f"<think>We add {i // 8} and {i // 8 % 97}, carrying {i * 7919 % 100_003} times.</think> "
                f"The answer is {total + (i % 3 == 0)}"
                for i, total in zip(span, sums, strict=True)
            ]
            columns = {
                "prompt": [f"What is {i // 8} plus {i // 8 % 97}?" for i in span],
                "completion": said,
                "answer": list(map(str, sums)),
                "correct": [float(i % 3 != 0) for i in span],
            }
            writer.write_table(pa.table(columns, schema))
    return path


class Run(NamedTuple):
    """A process that has ended."""

    seconds: float
    cpu: float
    """Processor seconds of it and its children."""
    memory: float
    """Peak of it and its children, in MB."""
    out: str


def measured(words: list[str]) -> Run:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    peak = [0.0]

    def watch() -> None:
        while child.poll() is None:
            peak[0] = max(peak[0], sum(resident(each) for each in family(child.pid)))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = child.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} ended with code {child.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, peak[0], out)


def family(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    try:
        children = [
            int(each)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for each in (task / "children").read_text().split()
        ]
    except OSError:  # it has just ended
        return
    for each in children:
        yield from family(each)


def resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except (OSError, IndexError):
        return 0.0


def score(source: Path, reward: Path, *more: str | Path) -> tuple[Run, dict]:
    out = source.with_name("scored.parquet")
    words = [
        sys.executable,
        "-m",
        "concordant",
        "score",
        source,
        "--reward",
        f"{reward}:correct",
        "--out",
        out,
    ]
    run = measured([*map(str, (*words, *more)), "--json"])
    out.unlink()
    return run, json.loads(run.out)["rewards"]["correct"]


def measure_files(folder: Path, rows: int) -> dict[str, dict[str, float]]:
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    found: dict[str, dict[str, float]] = {"rows_a_second": {}, "cpu_us_a_row": {}, "peak_mb": {}}
    for name, size in (("tenth", rows // 10), ("all", rows)):
        source = make(folder / f"{name}.parquet", size)
        cache = folder / f"{name}.db"
        runs = {"no_cache": (), "empty_cache": ("--cache", cache), "full_cache": ("--cache", cache)}
        for kind, options in runs.items():
            run, told = score(source, reward, *options)
            if told["scored"] != size or (kind == "full_cache" and told["cached"] != size):
                raise SystemExit(f"{kind}: not everything was scored: {told}")
            found["rows_a_second"][f"{kind}_{name}"] = size / run.seconds
            found["cpu_us_a_row"][f"{kind}_{name}"] = 1e6 * run.cpu / size
            found["peak_mb"][f"{kind}_{name}"] = run.memory
        run = measured([sys.executable, "-c", FLOOR, str(source), str(folder / "floor.parquet")])
        found["rows_a_second"][f"floor_{name}"] = size / run.seconds
        found["cpu_us_a_row"][f"floor_{name}"] = 1e6 * run.cpu / size
        cache.unlink()
    cpu, peak = found["cpu_us_a_row"], found["peak_mb"]
    found["ratios"] = {
        "cpu_no_cache_over_full_cache": cpu["no_cache_all"] / cpu["full_cache_all"],
        "cpu_full_cache_over_floor": cpu["full_cache_all"] / cpu["floor_all"],
        **{f"memory_all_over_tenth_{kind}": peak[f"{kind}_all"] / peak[f"{kind}_tenth"] for kind in runs},
    }
    return found


def best(run: Callable[[], object], rows: int, repeats: int = 5) -> float:
    """Microseconds for a row: the shortest of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * min(times) / rows


def measure_rows(folder: Path, rows: int = 50_000) -> dict[str, float]:
    import hashlib

    from concordant.scoring.cache import Cache
    from concordant.scoring.keys import row_keys
    from concordant.scoring.outcome import Outcome

    table = pq.read_table(make(folder / "keys.parquet", rows)).to_pydict()
    fields = {"completion": table["completion"], "answer": table["answer"]}
    code = bytes(16)

    def naive() -> None:
        for i in range(rows):
            text = json.dumps({name: values[i] for name, values in fields.items()}, sort_keys=True)
            hashlib.blake2b(code + text.encode(), digest_size=16).digest()

    keys = [key for key in row_keys(code, fields) if key is not None]
    with Cache(folder / "keys.db") as cache:
        stored = best(
            lambda: cache.put_many([(key, Outcome(float(i % 3))) for i, key in enumerate(keys)]), rows, 1
        )

        def look_up() -> None:
            for start in range(0, rows, 2048):
                cache.get_many(keys[start : start + 2048])

        found = {
            "key_us": best(lambda: row_keys(code, fields), rows),
            "naive_key_us": best(naive, rows),
            "lookup_us": best(look_up, rows),
            "store_us": stored,
        }
    return {**found, "naive_over_ours": found["naive_key_us"] / found["key_us"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the larger file")
    parser.add_argument("--folder", type=Path, help="where files are made and removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        found = {
            "machine": {"python": platform.python_version(), "pyarrow": pa.__version__, "rows": options.rows},
            "row": measure_rows(folder),
            **measure_files(folder, options.rows),
        }
    for section, numbers in found.items():
        print(section)
        for key, value in numbers.items():
            print(f"  {key:40s} {value if isinstance(value, str) else f'{value:,.2f}'}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
