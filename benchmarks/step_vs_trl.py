"""One GRPO step, ours against TRL's GRPOTrainer: same model, prompts, rewards and settings, each in its own process.

    python benchmarks/step_vs_trl.py                      # all cases, a few minutes on two cores
    python benchmarks/step_vs_trl.py --cases base-correct --steps 10 --json step.json

A step is: sample 8 prompts x 8 rollouts, score them, advantages, loss, backward, AdamW. The two processes live side by
side and take turns, a block of steps each, so that a busy machine slows both; which one goes first alternates. Printed
are the median seconds of a step, rollouts per second, processor seconds (threads that wait for work count), and the
ratio: the median over pairs of blocks, with the quarter of pairs below and above; the largest difference between TRL's
advantages and ours on the rewards of TRL's own rollouts; and the floor: sampling, and one forward and backward pass
over the distinct prefixes of informative rollouts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
PROMPTS, GROUP, LR = 8, 8, 1e-5
ENGINES = ("trl", "ours")
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
    sizes = {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4}
    sizes["max_position_embeddings"] = 192
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "tie_word_embeddings": True}
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")} | {
        "bos_token_id": None
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


class Turns:
    """A worker's side of the turns: it reports a block of timed steps, and waits for leave to take the next one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.warmup, self.size = options.warmup, options.block
        self.total = options.warmup + options.steps
        self.pipe = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print must not mix with reports
        self.block: list[tuple[float, float]] = []

    def tell(self, report: Any) -> None:
        """Send one line."""
        self.pipe.write(json.dumps(report) + "\n")

    def start(self) -> None:
        """Start the clock of a step."""
        self.begun = time.perf_counter(), time.process_time()

    def end(self, step: int) -> bool:
        """Stop the clock after step 1, 2, ...; return whether the next step has to `wait`."""
        if step > self.warmup:
            now = time.perf_counter(), time.process_time()
            self.block.append((now[0] - self.begun[0], now[1] - self.begun[1]))
        return step == self.warmup or len(self.block) == self.size or step == self.total

    def wait(self, step: int) -> None:
        """Report the block; wait, unless this was the last step."""
        self.tell(self.block)
        self.block = []
        if step < self.total and not sys.stdin.readline():
            raise SystemExit("the other side is gone")


def run_trl(options: argparse.Namespace, folder: Path, turns: Turns) -> dict[str, Any]:
    """Train with TRL in turns; return the largest difference between its advantages and ours."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    source = make_model(options.case, folder)
    seen: list[tuple[Any, Any]] = []

    class Watched(GRPOTrainer):
        def _calculate_rewards(self, *args: Any) -> Any:
            self.latest = super()._calculate_rewards(*args)
            return self.latest

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            seen.append((self.latest[:, 0].clone(), output["advantages"].clone()))
            return output

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if turns.end(state.global_step):
                turns.wait(state.global_step)
            turns.start()  # a step includes fetching its prompts, so it starts where the last one ended

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
    return {"advantage_difference": advantage_difference(seen)}


def advantage_difference(seen: list[tuple[Any, Any]]) -> float:
    """Largest difference between TRL's advantages and our kernel's on the same rewards."""
    import torch

    from concordant.kernels import group_zscore

    group = torch.arange(PROMPTS * GROUP) // GROUP
    return max(float((group_zscore(r, group, eps=1e-4, ddof=1) - a).abs().max()) for r, a in seen)


def make_run(options: argparse.Namespace, folder: Path) -> Any:
    """Our trainer with the same settings; nothing is evaluated, saved or recorded but one metrics line a step."""
    from concordant.experiment import build
    from concordant.loops.run import Run
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


def run_ours(options: argparse.Namespace, folder: Path, turns: Turns) -> dict[str, Any]:
    """Train with our loop in turns; return the floor of the first step of each block and what was left out."""
    run = make_run(options, folder)
    lines, floors = [], []
    for step in range(1, turns.total + 1):
        turns.start()
        lines.append(run.advance())
        if turns.end(step):
            if step < turns.total:
                floors.append(floor(run))
            turns.wait(step)
    kept = lines[options.warmup :]
    return {
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
    """Run one engine on one case; its last report is its numbers."""
    import torch

    turns = Turns(options)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        engine = run_trl if options.engine == "trl" else run_ours
        turns.tell(engine(options, Path(folder), turns))


class Worker:
    """One engine in its own process, seen from outside."""

    def __init__(self, options: argparse.Namespace, engine: str, case: str, errors: Any) -> None:
        names = ("steps", "warmup", "new_tokens", "threads", "block")
        arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
        command = [sys.executable, __file__, f"--engine={engine}", f"--case={case}", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        self.name, self.errors = f"{engine} on {case}", errors
        self.process: Any = subprocess.Popen(command, text=True, env=environment, **pipes)

    def read(self) -> Any:
        """Return the next report."""
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def block(self) -> list[list[float]]:
        """Let the engine take a block of steps; return seconds and processor seconds of each."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        steps: list[list[float]] = self.read()
        return steps


@contextmanager
def workers(options: argparse.Namespace, case: str) -> Iterator[dict[str, Worker]]:
    """Start both engines and end them."""
    with tempfile.TemporaryFile("w+") as trl, tempfile.TemporaryFile("w+") as ours:
        both = {"trl": Worker(options, "trl", case, trl), "ours": Worker(options, "ours", case, ours)}
        try:
            yield both
        finally:
            for worker in both.values():
                worker.process.kill()
                worker.process.communicate()


def take_turns(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """One round: both engines in fresh processes; return their blocks of steps, and their last reports."""
    blocks: dict[str, list[Any]] = {engine: [] for engine in ENGINES}
    with workers(options, case) as both:
        for worker in both.values():
            worker.read()  # warmed up
        for index in range(-(-options.steps // options.block)):
            for engine in ENGINES if index % 2 == 0 else reversed(ENGINES):
                blocks[engine].append(both[engine].block())
        return {"blocks": blocks, **{engine: worker.read() for engine, worker in both.items()}}


def block_ratios(blocks: dict[str, list[Any]], figure: int) -> list[float]:
    """TRL's time over ours in each pair of blocks; figure 0 is seconds, 1 processor seconds."""
    pairs = zip(blocks["trl"], blocks["ours"], strict=True)
    return [sum(step[figure] for step in trl) / sum(step[figure] for step in ours) for trl, ours in pairs]


def compare(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Run `rounds` rounds; return medians over all steps, and over all pairs of blocks."""
    rounds = [take_turns(options, case) for _ in range(options.rounds)]
    wall, processor = (
        {e: statistics.median(s[i] for r in rounds for b in r["blocks"][e] for s in b) for e in ENGINES}
        for i in (0, 1)
    )
    each = [block_ratios(r["blocks"], 0) for r in rounds]
    ratios = sorted(ratio for one in each for ratio in one)
    ours = [r["ours"] for r in rounds]
    floor_parts = {n: statistics.median(o["floor"][n] for o in ours) for n in ours[0]["floor"]}
    return {
        "case": case,
        "step_seconds": wall,
        "step_processor_seconds": processor,
        "rollouts_per_second": {engine: PROMPTS * GROUP / value for engine, value in wall.items()},
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "ratio_range": [ratios[0], ratios[-1]],
        "ratio_by_round": [statistics.median(one) for one in each],
        "ratio_processor": statistics.median(x for r in rounds for x in block_ratios(r["blocks"], 1)),
        "pairs": len(ratios),
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
    for engine in ENGINES:
        used = result["step_processor_seconds"][engine]
        print(
            f"  {engine:5} {step[engine]:7.3f} s a step {speed[engine]:7.0f} rollouts/s, processor {used:.3f} s"
        )
    (low, high), (least, most) = result["ratio_quartiles"], result["ratio_range"]
    rounds = ", ".join(f"{ratio:.2f}" for ratio in result["ratio_by_round"])
    print(
        f"  ratio {result['ratio']:.2f} (rounds: {rounds}; processor time: {result['ratio_processor']:.2f})"
    )
    print(f"  {result['pairs']} pairs: quartiles {low:.2f} to {high:.2f}, all {least:.2f} to {most:.2f}")
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
    parser.add_argument(
        "--block", type=int, default=1, help="steps of one engine before the other one's turn"
    )
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.steps, options.block, options.warmup, options.rounds) < 1:
        parser.error("--steps, --block, --warmup and --rounds must be at least 1")
    if options.engine:
        return work(options)
    results = []
    for case in options.cases.split(","):
        results.append(compare(options, case))
        show(results[-1])
    if options.json:
        settings = vars(options) | {"json": str(options.json)}
        options.json.write_text(json.dumps({"settings": settings, "cases": results}, indent=1))
    worst = max(result["advantage_difference"] for result in results)
    if worst > 1e-6:
        raise SystemExit(f"advantages differ by {worst:.1e}, more than 1e-6")


if __name__ == "__main__":
    main()
