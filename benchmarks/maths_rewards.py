"""1000 maths answers, 8 of them hostile: our maths reward in killable workers against math-verify's own time limits.

    python benchmarks/maths_rewards.py                    # about two minutes on two cores
    python benchmarks/maths_rewards.py --json maths.json

math-verify limits itself by alarms, which work in the main thread of a process only; that is how it is run here, with
its default of 5 s for parsing and for comparing. Ours has the same limit of 5 s, two workers, and its start-up counts.
Three ways are timed, each in a process of its own:

    ours         `math_answer` through the engine: what needs no algebra is decided at once
    engine       math-verify alone through the engine: what killable workers give without the fast path
    math-verify  as it comes

A quarter of the harmless answers are formulas. Seven of the hostile ones can be seen to be so, one only shows when
sympy does not come back. Printed are wall times and their ratios, and how often the verdicts on harmless answers agree.
"""

import argparse
import json
import logging
import os
import platform
import random
import subprocess
import sys
import time
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

HOSTILE = (
    r"9^{9^{9^{9}}}",
    r"10^{100000000}",
    r"\sum_{n=1}^{10^6} \frac{1}{n^3}",
    r"1000000000!",
    r"\binom{10^9}{5\cdot 10^8}",
    r"2^{2^{40}}+1",
    r"\prod_{k=1}^{9999}(x+k)",
    r"(x+1)^{3000}-(x-1)^{2999}",
)
LIMIT = 5
WAYS = ("ours", "engine", "math-verify")


def number(draw: random.Random) -> tuple[str, str]:
    """A pair (answer, key) of numbers in different spellings, half of them equal."""

    def spell(value: Fraction) -> str:
        n, d = value.numerator, value.denominator
        whole = (f"{n}", f"{n:,}", f"{n}.0", f"${n}$")
        return draw.choice(
            whole if d == 1 else (rf"\frac{{{n}}}{{{d}}}", f"{n}/{d}", rf"\dfrac{{{n}}}{{{d}}}")
        )

    value = Fraction(draw.randint(-5000, 5000), draw.choice((1, 1, 1, 2, 3, 7, 8)))
    return spell(value if draw.random() < 0.5 else value + draw.randint(1, 9)), spell(value)


def formula(draw: random.Random) -> tuple[str, str]:
    """A pair (answer, key) that only algebra decides."""
    a, b, right = draw.randint(2, 30), draw.randint(2, 30), draw.random() < 0.5
    c = b if right else b + 1
    return draw.choice(
        (
            (rf"{a}x+{a * c}", rf"{a}(x+{b})"),
            (rf"x^2-{c * c}", rf"(x-{b})(x+{b})"),
            (rf"\sqrt{{{a * c * c}}}", rf"{b}\sqrt{{{a}}}"),
            (rf"\left({a},{c}\right)", rf"({a}.0,{b}.0)"),
            (rf"x={c}", rf"{b}"),
            (rf"\{{{c},{a}\}}", rf"\{{{a},{b}\}}"),
            (rf"{c}\pi", rf"\pi\cdot {b}"),
        )
    )


def make_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """The answers and keys, the hostile ones spread among them."""
    draw = random.Random(seed)
    pairs = [formula(draw) if draw.random() < 0.25 else number(draw) for _ in range(count - len(HOSTILE))]
    for text in HOSTILE:
        pairs.insert(draw.randrange(len(pairs)), (text, "2x+2" if "x" in text else "17"))
    return pairs


def raw(completion: str, answer: str) -> float:
    """math-verify without time limits, as a reward."""
    from math_verify import parse, verify

    target = parse(completion, parsing_timeout=None)
    return float(verify(parse(rf"\boxed{{{answer}}}", parsing_timeout=None), target, timeout_seconds=None))


def by_engine(pairs: list[tuple[str, str]], fast: bool) -> list[float | None]:
    """Score through the engine, with or without the fast path."""
    from concordant.rewards import math_answer
    from concordant.scoring import Engine, Rows, as_reward, load_reward

    options: dict[str, Any] = {"timeout": LIMIT, "retries": 0, "cache": False}
    reward = as_reward(math_answer, **options) if fast else load_reward(f"{__file__}:raw", **options)
    completions, keys = zip(*((rf"The answer is \boxed{{{text}}}.", key) for text, key in pairs), strict=True)
    with Engine([reward], workers=2) as engine:
        outcomes = engine.run(Rows({"completion": completions, "answer": keys}))
    return [outcome.value for outcome in outcomes[reward.name]]  # type: ignore[misc]


def by_alarms(pairs: list[tuple[str, str]]) -> list[float | None]:
    """Score as math-verify's README says, with its own time limits."""
    from math_verify import parse, verify

    values: list[float | None] = []
    for text, key in pairs:
        target = parse(rf"The answer is \boxed{{{text}}}.", parsing_timeout=LIMIT)
        values.append(float(verify(parse(rf"\boxed{{{key}}}"), target, timeout_seconds=LIMIT)))
    return values


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time one way in a process of its own, imports included."""
    command = [
        sys.executable,
        __file__,
        "--way",
        way,
        "--count",
        str(options.count),
        "--seed",
        str(options.seed),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "values": json.loads(done.stdout.splitlines()[-1]),
    }


def summary(options: argparse.Namespace) -> dict[str, Any]:
    """All ways in one run: seconds, ratios, agreement."""
    pairs = make_pairs(options.count, options.seed)
    measured = {way: measure(way, options) for way in WAYS}
    harmless = [place for place, (text, _) in enumerate(pairs) if text not in HOSTILE]
    theirs = measured["math-verify"]["values"]

    def agreement(way: str) -> float:
        return sum(measured[way]["values"][i] == theirs[i] for i in harmless) / len(harmless)

    hostile = [
        value for value, (text, _) in zip(measured["ours"]["values"], pairs, strict=True) if text in HOSTILE
    ]
    seconds = {way: one["seconds"] for way, one in measured.items()}
    return {
        "answers": options.count,
        "hostile": len(HOSTILE),
        "seconds": seconds,
        "times_faster": {way: round(seconds["math-verify"] / seconds[way], 2) for way in WAYS[:2]},
        "agreement_on_harmless": {way: round(agreement(way), 4) for way in WAYS[:2]},
        "right_among_harmless": sum(theirs[i] == 1.0 for i in harmless),
        "ours_on_hostile": {
            "missing": hostile.count(None),
            "wrong": hostile.count(0.0),
            "right": hostile.count(1.0),
        },
        "versions": {name: version(name) for name in ("math-verify", "sympy")}
        | {"python": platform.python_version()},
        "machine": {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="answers, the hostile ones included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        logging.disable(logging.CRITICAL)
        pairs = make_pairs(options.count, options.seed)
        print(
            json.dumps(
                by_alarms(pairs) if options.way == "math-verify" else by_engine(pairs, options.way == "ours")
            )
        )
        return
    result = summary(options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
