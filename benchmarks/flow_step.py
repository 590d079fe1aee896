"""One Flow-GRPO step on `flow/digits`: ours against the public loop, stripped to what it computes.

    python benchmarks/flow_step.py                     # both bases, two threads, a few minutes
    python benchmarks/flow_step.py --models mlp --rounds 5 --json flow_step.json

The public loop is written here from its description: one forward pass for each denoising step when sampling; rewards;
advantages per prompt in float64; then, step by step, forward, clipped loss and backward over the batch, gradients
accumulated; one optimiser step. It passes 9 images at a time, as its published settings for Stable Diffusion 3.5
say, or all 192, which is best for it here. Ours is the step of `concordant run flow-grpo`, with its tables, rewards and
records.
Both draw 24 prompts x 8 images, 10 steps of which 9 train, from the same base, in turns in one process. A round is some
steps of each; printed are images per second, the ratio of every round, and their median.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS, GROUP, STEPS, NOISE, CLIP, LR = 24, 8, 10, 0.7, 1e-4, 3e-4


class PublicLoop:
    """Sampling and training of Flow-GRPO on a bare network and a bare reward function, `batch` images at a time."""

    def __init__(self, world: Any, batch: int) -> None:
        import torch

        self.world, self.network, self.batch = world, world.network(), batch
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=LR, weight_decay=0.0)
        self.sigmas = torch.linspace(1.0, 0.0, STEPS + 1)
        self.reward = world.rewards["cls"]
        self.number = 0

    def sde_step(self, velocity: Any, x: Any, k: int, drawn: Any = None) -> tuple[Any, Any]:
        """Next state and its log-probability, the mean over latent dimensions."""
        import torch

        sigma, after = self.sigmas[k], self.sigmas[k + 1]
        dt = after - sigma
        level = NOISE * torch.sqrt(sigma / (1 - (self.sigmas[1] if k == 0 else sigma)))
        mean = x * (1 + level**2 / (2 * sigma) * dt)
        mean = mean + velocity * (1 + level**2 * (1 - sigma) / (2 * sigma)) * dt
        std = level * torch.sqrt(-dt)
        if drawn is None:
            drawn = mean + std * torch.randn_like(x)
        logp = -((drawn.detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.9189385332046727
        return drawn, logp.mean(1)

    def sample(self, condition: Any) -> tuple[list[Any], list[Any]]:
        """States and log-probabilities of one batch, step by step."""
        import torch

        x = torch.randn(len(condition), 64)
        states, logps = [x], []
        with torch.no_grad():
            for k in range(STEPS):
                velocity = self.network(x, self.sigmas[k].expand(len(x)), condition)
                x, logp = self.sde_step(velocity, x, k)
                states.append(x)
                logps.append(logp)
        return states, logps

    def train(
        self, states: list[Any], logps: list[Any], condition: Any, advantage: Any, share: float
    ) -> None:
        """Accumulate the gradient of one batch, step by step; images without advantage are dropped."""
        import torch

        used = advantage != 0
        advantage = advantage[used].clamp(-5, 5)
        for k in range(STEPS - 1):
            before, drawn = states[k][used], states[k + 1][used]
            velocity = self.network(before, self.sigmas[k].expand(len(before)), condition[used])
            _, logp = self.sde_step(velocity, before, k, drawn)
            ratio = torch.exp(logp - logps[k][used])
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
            (loss * (share / (STEPS - 1))).backward()

    def step(self) -> float:
        """Sample, score and train once; return the mean reward."""
        import numpy as np
        import torch

        tasks = self.world.tasks("train", 0, self.number, PROMPTS)
        self.number += 1
        labels = [task.fields["label"] for task in tasks for _ in range(GROUP)]
        conditions = self.network.encode([task.prompt for task in tasks for _ in range(GROUP)]).split(
            self.batch
        )
        drawn = [self.sample(condition) for condition in conditions]
        with torch.no_grad():
            images = [image for states, _ in drawn for image in self.network.decode(states[-1]).numpy()]
        rewards = np.array(self.reward(images, labels), dtype=np.float64)
        grouped = rewards.reshape(PROMPTS, GROUP)
        advantages = (grouped - grouped.mean(1, keepdims=True)) / (grouped.std(1, keepdims=True) + 1e-4)
        parts = torch.from_numpy(advantages.ravel()).float().split(self.batch)
        self.optimiser.zero_grad()
        for (states, logps), condition, advantage in zip(drawn, conditions, parts, strict=True):
            if bool((advantage != 0).any()):
                self.train(states, logps, condition, advantage, len(advantage) / len(labels))
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        return float(rewards.mean())


PIECE = {"mlp": 8192, "dit": 108}
"""Network evaluations of one training pass: what fits the caches of a processor."""


def our_run(model: str, folder: Path) -> Any:
    """The run of `flow-grpo` with one optimiser step a table, as the public loop above has."""
    from concordant.experiment import build
    from concordant.loops.run import Run
    from concordant.worlds.build import make_policy, make_world

    sets = [f"world.model={model}", "train.updates=1", "train.eval_every=1000000", "train.save_every=1000000"]
    sets += ["train.steps=1000000", "train.warmup=0", f"train.micro_batch={PIECE[model]}"]
    experiment = build("flow-grpo", sets=sets)
    world = make_world(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(experiment, folder, world, make_policy(experiment, world))
    run.records.rewind(0)
    return run


def measure(model: str, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Time both in turns."""
    from concordant.worlds import base

    with tempfile.TemporaryDirectory() as folder:
        run, public = (
            our_run(model, Path(folder)),
            PublicLoop(base.get("flow/digits", {"model": model}), batch),
        )
        sides = {"ours": run.advance, "public": public.step}
        for step in sides.values():
            step()
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            for name in list(sides)[:: 1 if number % 2 else -1]:
                started = time.perf_counter()
                for _ in range(steps):
                    sides[name]()
                seconds[name].append((time.perf_counter() - started) / steps)
        run.scorer.close()
    images = PROMPTS * GROUP
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["public"], strict=True)]
    return {
        "model": model,
        "public_batch": batch,
        **{
            f"{name}_images_per_second": round(images / statistics.median(v), 1)
            for name, v in seconds.items()
        },
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mlp", "dit"])
    parser.add_argument("--batches", nargs="+", type=int, default=[9, PROMPTS * GROUP])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    found = []
    for model, batch in itertools.product(options.models, options.batches):
        found.append(measure(model, batch, options.rounds, options.steps))
        print(json.dumps(found[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"threads": options.threads, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
