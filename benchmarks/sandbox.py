"""How fast sandboxed programs are judged: programs a second, and ratios to verl's grader in the same run.

    python benchmarks/sandbox.py [--json PATH] [--repeats N] [--seconds S]

1. Programs of 24 stdin/stdout tests a second on two workers, as the engine has them: a process and a slot each.
   `shared`: the tests of a program run in one process (isolated=False), as they do in verl's grader.
   `isolated`: a fresh process for each test.
   `measured` is on the clock, whatever else the machine does; `on_two_free_cores` is 2 / (CPU seconds of a program,
   everything counted), which `measured` approaches as `cores_had` approaches 2.
2. Seconds for a problem against `verl.utils.reward_score.prime_code` (no sandbox: a process and rlimits), one worker
   each, in turns; the median ratio over the repeats. Both run all 24 tests of a program that is right. One that is
   wrong verl stops at its first failure and then tries again with ten tests, one process each; ours runs all 24.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path

from concordant.scoring.sandbox import Limits, Sandbox, StdioTest

TESTS = 24
LIMITS = Limits()

SORT = """
def merge(a, b):
    out = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            out.append(a[i]); i += 1
        else:
            out.append(b[j]); j += 1
    return out + a[i:] + b[j:]

def sort(xs):
    if len(xs) < 2:
        return xs
    m = len(xs) // 2
    return merge(sort(xs[:m]), sort(xs[m:]))

print(*sort(list(map(int, input().split()))))
"""
GAPS = """
import sys
from collections import Counter

numbers = [int(word) for word in sys.stdin.read().split()]
best = {}
for x in sorted(numbers):
    best[x] = max(best.get(x - 1, 0), best.get(x - 2, 0)) + Counter(numbers)[x]
print(max(best.values()))
"""
LIS = """
from bisect import bisect_left

def main():
    tails = []
    for x in map(int, input().split()):
        k = bisect_left(tails, x)
        tails[k:k + 1] = [x]
    print(len(tails))

main()
"""


def inputs() -> list[str]:
    rows = [[(7 * i * i + 13 * j * j + 5 * i * j) % 97 for j in range(20 + i)] for i in range(TESTS)]
    return [" ".join(map(str, row)) for row in rows]


def suites() -> list[tuple[str, str, list[StdioTest]]]:
    """Return programs with their tests: three that are right, and three that fail the second half of the tests."""
    with Sandbox("bubblewrap", slots=1, limits=LIMITS) as box:
        found = []
        for name, code in (("sort", SORT), ("gaps", GAPS), ("lis", LIS)):
            blank = [StdioTest(text, "") for text in inputs()]
            outputs = [result.result.stdout for result in box.run_tests(code, blank)]
            assert all(outputs)
            tests = [StdioTest(text, out) for text, out in zip(inputs(), outputs, strict=True)]
            found.append((f"{name}, right", code, tests))
            half = f"import sys\nif len(sys.stdin.read()) > {len(inputs()[TESTS // 2]) - 1}: print('?'); exit()\n"
            found.append((f"{name}, half right", half + "sys.stdin.seek(0)\n" + code, tests))
        return found


def processor_seconds(box: Sandbox) -> float:
    """CPU time so far of this process, the fork servers of the sandbox and all children they had."""
    spent = time.process_time()
    for slot in box._free.queue:
        outer = slot.server.process.pid if slot else 0
        for server in Path(f"/proc/{outer}/task/{outer}/children").read_text().split() if outer else ():
            fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
            spent += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return spent


def work(isolated: bool, seconds: float, start: float) -> tuple[int, float, float]:
    """Judge programs for a while from `start` on; returns how many, seconds on the clock and of CPU time."""
    programs = suites()
    with Sandbox("bubblewrap", slots=1, limits=LIMITS) as box:
        box.run_tests(programs[0][1], programs[0][2], isolated=isolated)
        while time.time() < start:
            time.sleep(0.001)
        begin, done, spent = time.perf_counter(), 0, processor_seconds(box)
        while time.perf_counter() - begin < seconds:
            _, code, tests = programs[done % len(programs)]
            results = box.run_tests(code, tests, isolated=isolated)
            assert len(results) == TESTS and all(result.passed is not None for result in results)
            done += 1
        return done, time.perf_counter() - begin, processor_seconds(box) - spent


def throughput(isolated: bool, seconds: float) -> dict[str, float]:
    """Programs a second of two workers together, and what they would be with two cores to themselves."""
    start = time.time() + 6.0
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.starmap(work, [(isolated, seconds, start)] * 2)
    programs, cpu = sum(done for done, _, _ in counts), sum(spent for _, _, spent in counts)
    return {
        "measured": sum(done / clock for done, clock, _ in counts),
        "cores_had": cpu / max(clock for _, clock, _ in counts),
        "cpu_ms_per_program": 1e3 * cpu / programs,
        "on_two_free_cores": 2 * programs / cpu,
    }


def against_verl(repeats: int) -> dict[str, object] | None:
    try:
        from verl.utils.reward_score import prime_code
    except ImportError:
        return None
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with Sandbox("bubblewrap", slots=1, limits=LIMITS) as box:
        for _ in range(repeats):
            for name, code, tests in suites():
                data = {"inputs": [t.stdin for t in tests], "outputs": [t.expected for t in tests]}
                clock = [time.perf_counter()]
                theirs, _ = prime_code.compute_score(code, data, continuous=True)
                clock.append(time.perf_counter())
                ours = box.run_tests(code, tests, isolated=False)
                clock.append(time.perf_counter())
                alone = box.run_tests(code, tests, isolated=True)
                clock.append(time.perf_counter())
                share = sum(bool(r.passed) for r in ours) / TESTS
                assert [r.passed for r in ours] == [r.passed for r in alone]
                assert (theirs is True) == (share == 1.0), (name, theirs, share, ours)
                rows.setdefault(name, []).append(tuple(b - a for a, b in itertools.pairwise(clock)))  # type: ignore[arg-type]
    found: dict[str, object] = {}
    for name, times in rows.items():
        found[name] = {
            "verl_ms": 1e3 * statistics.median(t[0] for t in times),
            "shared_ms": 1e3 * statistics.median(t[1] for t in times),
            "isolated_ms": 1e3 * statistics.median(t[2] for t in times),
            "ratio_shared": statistics.median(t[0] / t[1] for t in times),
            "ratio_isolated": statistics.median(t[0] / t[2] for t in times),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rates = {
        name: [throughput(isolated, options.seconds) for _ in range(options.repeats)]
        for name, isolated in (("shared", False), ("isolated", True))
    }
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": round(load, 2),
        "tests_per_program": TESTS,
        "programs_per_second_two_workers": {
            name: {key: statistics.median(value[key] for value in values) for key in values[0]}
            for name, values in rates.items()
        },
        "per_problem": against_verl(options.repeats),
    }
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
