"""One GRPO step, ours against TRL's GRPOTrainer: same model, prompts, rewards and settings, each in its own process.

    python benchmarks/step_vs_trl.py                      # all cases, a few minutes on two cores
    python benchmarks/step_vs_trl.py --cases base-correct --steps 10 --json step.json

A step is: sample 8 prompts x 8 rollouts, score them, advantages, loss, backward, AdamW. Printed are the median seconds
of a step, rollouts per second, and their ratio; the largest difference between TRL's advantages and ours on the rewards
of TRL's own rollouts; and the floor: sampling, and one forward and backward pass over the distinct prefixes of
informative rollouts.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
PROMPTS, GROUP, LR = 8, 8, 1e-5
CASES = {
    "base-correct": "the world's base policy, 0/1 reward: many groups tie and need no pass",
    "base-dense": "the same policy, a reward that hardly ever ties",
    "random-dense": "1.6 M random weights, the same reward: nothing ties, nothing is shared but the prompt",
}


def dense(completion: str) -> float:
    """Share of digits among the characters, in 1/256: hardly ever equal in a group, and exact in float32."""
    return round(256 * sum(character.isdigit() for character in completion) / max(len(completion), 1)) / 256


def make_model(case: str, folder: Path) -> Path:
    """Return the folder of the model of a case; the random one is made here."""
    from concordant.worlds.lm_arithmetic.vocabulary import build_tokenizer
    from concordant.worlds.lm_arithmetic.world import BASE

    if case.startswith("base"):
        return Path(BASE)
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes = {
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "max_position_embeddings": 192,
    }
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "tie_word_embeddings": True}
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **sizes, **heads, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_world() -> Any:
    """The world whose train prompts both engines use, step by step."""
    from concordant.worlds import base

    return base.get("lm/arithmetic")


def trl_reward(case: str) -> Callable[..., list[float]]:
    """The reward of a case in TRL's calling convention."""
    function = make_world().rewards["correct"]

    def reward(completions: list[Any], answer: list[str], numbers: list[Any], **_: Any) -> list[float]:
        texts = [messages[0]["content"] for messages in completions]
        if case.endswith("dense"):
            return [dense(text) for text in texts]
        return [float(function(*row)) for row in zip(texts, answer, numbers, strict=True)]

    return reward


def trl_config(options: argparse.Namespace, folder: Path) -> Any:
    """The settings of TRL's trainer: one update a batch, no reference, nothing reported or saved."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        max_completion_length=options.new_tokens, max_steps=options.warmup + options.steps, learning_rate=LR,
        lr_scheduler_type="constant", beta=0.0, loss_type="grpo", epsilon=0.2, scale_rewards="group",
        temperature=1.0, num_iterations=1, gradient_accumulation_steps=1, gradient_checkpointing=False,
        shuffle_dataset=False, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=True, bf16=False, weight_decay=0.0, max_grad_norm=1.0, dataloader_num_workers=0,
    )  # fmt: skip


def run_trl(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with TRL; return the seconds of each step and the advantages' largest difference from ours."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    source = make_model(options.case, folder)
    seen: list[tuple[Any, Any]] = []
    ends: list[float] = []

    class Watched(GRPOTrainer):
        def _calculate_rewards(self, *args: Any) -> Any:
            self.latest = super()._calculate_rewards(*args)
            return self.latest

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            seen.append((self.latest[:, 0].clone(), output["advantages"].clone()))
            return output

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    world, total = make_world(), options.warmup + options.steps
    tasks = [task for step in range(total) for task in world.tasks("train", 0, step, PROMPTS)]
    names = ("answer", "numbers")
    data = Dataset.from_list([{"prompt": t.prompt, **{n: t.fields[n] for n in names}} for t in tasks])
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    reward, config = trl_reward(options.case), trl_config(options, folder / "trl")
    Watched(
        model, reward, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
    ).train()
    seconds = [b - a for a, b in itertools.pairwise(ends)][options.warmup - 1 :]
    return {"seconds": seconds, "advantage_difference": advantage_difference(seen)}


def advantage_difference(seen: list[tuple[Any, Any]]) -> float:
    """Largest difference between TRL's advantages and our kernel's on the same rewards."""
    import torch

    from concordant.kernels import group_zscore

    group = torch.arange(PROMPTS * GROUP) // GROUP
    return max(float((group_zscore(r, group, eps=1e-4, ddof=1) - a).abs().max()) for r, a in seen)


def make_run(options: argparse.Namespace, folder: Path) -> Any:
    """Our trainer with the same settings; nothing is evaluated, saved or recorded but one metrics line a step."""
    from concordant.experiment import build
    from concordant.loops.train import Run
    from concordant.policies import LMPolicy
    from concordant.recipes.grpo import grpo

    values = {
        "steps": 10**6, "prompts": PROMPTS, "group_size": GROUP, "max_new_tokens": options.new_tokens, "lr": LR,
        "warmup": 0, "eval_every": 10**6, "save_every": 10**6, "log_rollouts": 0,
    }  # fmt: skip
    experiment = build("grpo", sets=[f"train.{name}={value}" for name, value in values.items()])
    if options.case.endswith("dense"):
        arm = replace(experiment.arm, chain=grpo(("dense",)), rewards=(dense,))
        experiment = replace(experiment, arm=arm)
    policy = LMPolicy.from_pretrained(make_model(options.case, folder))
    run = Run(experiment, folder, make_world(), policy)
    run.records.rewind(0)
    return run


def run_ours(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with our loop; return the seconds of each step, the floor of the same steps and what was left out."""
    run = make_run(options, folder)
    seconds, lines, floors = [], [], []
    for step in range(options.warmup + options.steps):
        if step >= options.warmup:
            floors.append(floor(run))
        start = time.perf_counter()
        lines.append(run.advance())
        seconds.append(time.perf_counter() - start)
    kept = lines[options.warmup :]
    return {
        "seconds": seconds[options.warmup :],
        "floor": {name: statistics.median(f[name] for f in floors) for name in floors[0]},
        "logp_shift": max(line["logp_shift"] for line in kept),
        **{name: statistics.mean(line[name] for line in kept) for name in ("rows_active", "rows_forward")},
    }


def floor(run: Any) -> dict[str, float]:
    """Seconds of sampling, and of one pass over the informative rollouts, of the step that comes next."""
    from concordant.core.chain import Context
    from concordant.core.seeds import Progress

    tasks, rng = run._tasks(), run.rng.at(run.step)
    start = time.perf_counter()
    table = run.policy.sample(tasks, run.plan, rng.child("sample"))
    sampled = time.perf_counter()
    scored, _ = run.arm.chain.apply(run._score(table).table, Context(rng, Progress(), {}))
    active = run.arm.objective.prepare(scored).active()
    middle = time.perf_counter()
    if len(active):
        run.policy.logp(table.take(active)).sum().backward()
    end = time.perf_counter()
    for parameter in run.policy.parameters():
        parameter.grad = None
    return {"sample": sampled - start, "pass": end - middle}


def work(options: argparse.Namespace) -> None:
    """Run one engine on one case and print its numbers as the last line."""
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        engine = run_trl if options.engine == "trl" else run_ours
        print(json.dumps(engine(options, Path(folder))))


def call(options: argparse.Namespace, engine: str, case: str) -> dict[str, Any]:
    """Run one engine in its own process."""
    names = ("steps", "warmup", "new_tokens", "threads")
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    command = [sys.executable, __file__, f"--engine={engine}", f"--case={case}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed on {case}:\n{done.stderr[-3000:]}")
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def compare(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Run both engines in turn, `rounds` times; return medians over all steps and the ratio of each round."""
    rounds = [
        {engine: call(options, engine, case) for engine in ("trl", "ours")} for _ in range(options.rounds)
    ]
    step = {e: statistics.median(s for r in rounds for s in r[e]["seconds"]) for e in ("trl", "ours")}
    each = [statistics.median(r["trl"]["seconds"]) / statistics.median(r["ours"]["seconds"]) for r in rounds]
    ours = [r["ours"] for r in rounds]
    floor_parts = {n: statistics.median(o["floor"][n] for o in ours) for n in ours[0]["floor"]}
    return {
        "case": case,
        "step_seconds": step,
        "rollouts_per_second": {engine: PROMPTS * GROUP / value for engine, value in step.items()},
        "ratio": step["trl"] / step["ours"],
        "ratio_by_round": each,
        "floor_seconds": {**floor_parts, "total": sum(floor_parts.values())},
        "rows_active": statistics.mean(o["rows_active"] for o in ours),
        "rows_forward": statistics.mean(o["rows_forward"] for o in ours),
        "logp_shift": max(o["logp_shift"] for o in ours),
        "advantage_difference": max(r["trl"]["advantage_difference"] for r in rounds),
    }


def show(result: dict[str, Any]) -> None:
    """Print one case."""
    speed, step, floor_ = result["rollouts_per_second"], result["step_seconds"], result["floor_seconds"]
    print(f"{result['case']}: {CASES[result['case']]}")
    for engine in ("trl", "ours"):
        print(f"  {engine:5} {step[engine]:7.3f} s a step {speed[engine]:7.0f} rollouts/s")
    rounds = ", ".join(f"{ratio:.2f}" for ratio in result["ratio_by_round"])
    print(f"  ratio {result['ratio']:.2f} (rounds: {rounds})")
    print(f"  floor {floor_['total']:.3f} s: sampling {floor_['sample']:.3f}, pass {floor_['pass']:.3f}")
    print(
        f"  rows with force {result['rows_active']:.1f}, distinct {result['rows_forward']:.1f} of {PROMPTS * GROUP}"
    )
    print(f"  largest advantage difference {result['advantage_difference']:.1e}", flush=True)


def main() -> None:
    """Parse arguments; run the cases, or one engine when called by itself."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each engine and round")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--engine", choices=("trl", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        return work(options)
    results = []
    for case in options.cases.split(","):
        results.append(compare(options, case))
        show(results[-1])
    if options.json:
        options.json.write_text(
            json.dumps({"settings": vars(options) | {"json": str(options.json)}, "cases": results}, indent=1)
        )
    worst = max(result["advantage_difference"] for result in results)
    if worst > 1e-6:
        raise SystemExit(f"advantages differ by {worst:.1e}, more than 1e-6")


if __name__ == "__main__":
    main()
