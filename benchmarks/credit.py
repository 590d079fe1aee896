"""How fast credit is: ratios on this machine, so that the numbers carry over to another one.

    python benchmarks/credit.py [--json PATH] [--threads N]

1. `gae` against verl's loop over steps at 1024 x 4096 (only if verl is installed).
2. Group kernels against the floor: read rewards [b s] once to a row sum, normalise by reshaping, write the advantage
   [b s] once. The reshape needs equal, ordered groups; the kernel needs neither.
3. Growth from 1e3 to 1e6 rollouts in shuffled groups: seconds for a rollout must stay level.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from concordant.kernels import (
    batch_zscore,
    gae,
    group_loo,
    group_rank,
    group_zscore,
    majority_vote,
    spread,
    to_go,
)


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Shortest of a few runs, after one to warm up."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def verl_gae() -> Callable[..., object] | None:
    try:
        from verl.trainer.ppo.core_algos import compute_gae_advantage_return
    except ImportError:
        return None
    return compute_gae_advantage_return


def measure_gae(rows: int = 1024, steps: int = 4096) -> dict[str, float]:
    gen = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(rows, steps, generator=gen) for _ in range(2))
    length = torch.randint(steps // 2, steps + 1, (rows, 1), generator=gen)
    mask = torch.arange(steps) < length
    found = {
        "gae_ms": 1e3 * seconds(lambda: gae(rewards, values, mask, gamma=0.99, lam=0.95), repeats=15),
        "to_go_ms": 1e3 * seconds(lambda: to_go(rewards, mask)),
    }
    if theirs := verl_gae():
        as_float = mask.float()
        found["verl_gae_ms"] = 1e3 * seconds(lambda: theirs(rewards, values, as_float, 0.99, 0.95), repeats=2)
        found["verl_over_ours"] = found["verl_gae_ms"] / found["gae_ms"]
        whitened = 1e3 * seconds(
            lambda: batch_zscore(
                gae(rewards, values, mask, gamma=0.99, lam=0.95).advantage, mask=mask, eps=1e-8, eps_at="var"
            )
        )
        found["gae_and_whitening_ms"] = whitened
        found["verl_over_ours_with_whitening"] = found["verl_gae_ms"] / whitened
    return found


def measure_floor(rows: int = 4096, steps: int = 1024, size: int = 8) -> dict[str, float]:
    rewards, mask = torch.rand(rows, steps), torch.ones(rows, steps, dtype=torch.bool)
    group = torch.arange(rows) // size
    shuffled = group[torch.randperm(rows)]

    def floor() -> torch.Tensor:
        x = rewards.sum(1).view(-1, size)
        z = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4)
        return torch.where(mask, z.reshape(-1, 1), 0.0)

    base = seconds(floor)
    found = {"floor_ms": 1e3 * base}
    for name, ids in (("ordered", group), ("shuffled", shuffled), ("hashed", shuffled * 1_000_003 * 7919)):
        ours = seconds(lambda ids=ids: spread(group_zscore(rewards.sum(1), ids), mask))
        found[f"over_floor_{name}"] = ours / base
    return found


def measure_growth() -> dict[str, dict[str, float]]:
    kernels = {
        "group_zscore": lambda x, g, a: group_zscore(x, g),
        "group_loo": lambda x, g, a: group_loo(x, g),
        "group_rank": lambda x, g, a: group_rank(x, g),
        "batch_zscore": lambda x, g, a: batch_zscore(x),
        "majority_vote": lambda x, g, a: majority_vote(a, g),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in kernels}
    for rows in (10**3, 10**4, 10**5, 10**6):
        x, answer = torch.rand(rows), torch.randint(0, 5, (rows,))
        group = (torch.arange(rows) // 8)[torch.randperm(rows)]
        for name, kernel in kernels.items():
            nanoseconds = 1e9 * seconds(lambda k=kernel, x=x, g=group, a=answer: k(x, g, a), repeats=3) / rows
            found[name][f"{rows:.0e}"] = nanoseconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found = {
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": options.threads,
        },
        "gae": measure_gae(),
        "group_zscore": measure_floor(),
        "nanoseconds_for_a_rollout": measure_growth(),
    }
    for section, numbers in found.items():
        print(section)
        for name, value in numbers.items():
            if isinstance(value, dict):
                value = "  ".join(f"{rows}: {ns:.0f}" for rows, ns in value.items())
            print(f"  {name:32s} {value if isinstance(value, str) else f'{value:.2f}'}")
    if "verl_gae_ms" not in found["gae"]:
        print("verl is not installed: no comparison of gae", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
