"""Make the base policy and the step scorer that ship with the world `lm/arithmetic`.

    python scripts/pretrain_arithmetic.py                 # both, about 45 minutes on one core
    python scripts/pretrain_arithmetic.py --part scorer   # only the step scorer, from the shipped base

The corpus is written by `concordant.worlds.lm_arithmetic.teacher`; same seed, machine and thread count give
the same bits.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from rich.progress import track
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from concordant.core.seeds import address
from concordant.core.table import Table
from concordant.rewards import think_text
from concordant.worlds import Task
from concordant.worlds.lm_arithmetic import ArithmeticWorld, StepScorer, problems, vocabulary
from concordant.worlds.lm_arithmetic.columns import annotate
from concordant.worlds.lm_arithmetic.scorer import ScorerConfig, ScorerNet, join, step_ends
from concordant.worlds.lm_arithmetic.teacher import Teacher, example
from concordant.worlds.lm_arithmetic.traces import judge

CHUNK = 16  # batches that are sorted by length together, so that a batch holds rows of similar length


@dataclass(frozen=True)
class Phase:
    """One pass of maximum likelihood over its own freshly written corpus."""

    steps: int
    lr: float
    mix: Mapping[str, float]
    """Share of each level: hard ones are rare."""
    skills: Mapping[str, float]
    """Share of solving, of writing hints, and of solving with a hint."""
    teacher: Teacher
    hint_mix: Mapping[str, float] = field(default_factory=dict)
    """Share of each level among hint skills; empty means as in `mix`."""


CAREFUL = Teacher(
    slip_ceiling=0.6, slip_digits=2.2, slip_terms=1.3, slip_offset=-5.0, by_heart=0.0, sloppy=0.0
)
"""Without the habits that come last."""
LEARN = Phase(
    steps=1800,
    lr=2e-3,
    mix={
        "2x1": 0.07, "3x1": 0.08, "2x2": 0.12, "4x1": 0.10, "3x2": 0.16, "2x3": 0.12, "5x1": 0.07,
        "6x1": 0.04, "4x2": 0.06, "3x3": 0.05, "5x2": 0.03, "4x3": 0.02, "countdown": 0.08,
    },
    skills={"solve": 0.84, "hint": 0.06, "hinted": 0.10},
    teacher=replace(CAREFUL, slip_offset=-4.5, written_only=0.22, wrong_countdown=0.4),
)  # fmt: skip
"""Learns the arithmetic and the format."""
SETTLE = Phase(
    steps=1000,
    lr=1.2e-3,
    mix={
        "2x1": 0.05, "3x1": 0.07, "2x2": 0.14, "4x1": 0.09, "3x2": 0.18, "2x3": 0.12, "5x1": 0.07,
        "6x1": 0.03, "4x2": 0.06, "3x3": 0.04, "5x2": 0.03, "4x3": 0.02, "countdown": 0.10,
    },
    skills={"solve": 0.64, "hint": 0.13, "hinted": 0.23},
    teacher=CAREFUL,
    hint_mix={
        "3x1": 0.05, "3x2": 0.10, "4x1": 0.10, "5x1": 0.10, "6x1": 0.15, "4x2": 0.15, "5x2": 0.20,
        "3x3": 0.05, "4x3": 0.10,
    },
)  # fmt: skip
"""Settles the arithmetic and teaches to write and use hints."""
HABITS = Phase(
    steps=800,
    lr=1e-3,
    mix={
        "2x1": 0.08, "3x1": 0.12, "2x2": 0.20, "4x1": 0.08, "3x2": 0.14, "2x3": 0.09, "5x1": 0.06,
        "6x1": 0.03, "4x2": 0.06, "3x3": 0.04, "5x2": 0.03, "4x3": 0.02, "countdown": 0.05,
    },
    skills={"solve": 0.74, "hint": 0.09, "hinted": 0.17},
    teacher=Teacher(),
    hint_mix=SETTLE.hint_mix,
)  # fmt: skip
"""Brings in all habits of the teacher, whose slips now depend more on the size of the problem."""
PHASES = (LEARN, SETTLE, HABITS)


def write_corpus(phase: Phase, count: int, seed: int) -> list[tuple[str, str]]:
    """Write `count` (question, completion) pairs on train expressions."""
    rng, pairs = Random(seed), []
    for index in track(range(count), description="corpus"):
        level = rng.choices(list(phase.mix), list(phase.mix.values()))[0]
        skill = rng.choices(list(phase.skills), list(phase.skills.values()))[0]
        if skill != "solve" and phase.hint_mix:
            level = rng.choices(list(phase.hint_mix), list(phase.hint_mix.values()))[0]
        problem = problems.draw(level, address("corpus", seed, index), test=False)
        pairs.append(example(problem, skill, rng, phase.teacher))
    return pairs


def encode(pairs: list[tuple[str, str]], tokenizer) -> list[tuple[list[int], int]]:
    """Return token ids of each pair and the number of prompt tokens in front."""
    prompts = [f"{vocabulary.USER}{question}{vocabulary.ASSISTANT}" for question, _ in pairs]
    texts = [
        f"{prompt}{completion}{vocabulary.END}"
        for prompt, (_, completion) in zip(prompts, pairs, strict=True)
    ]
    fronts = tokenizer(prompts)["input_ids"]
    return [(ids, len(front)) for ids, front in zip(tokenizer(texts)["input_ids"], fronts, strict=True)]


def batches(rows: list[tuple[list[int], int]], size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Pack rows into padded (ids, labels) batches; prompt and padding carry label -100."""
    rng, packed = Random(seed), []
    for start in range(0, len(rows), size * CHUNK):
        chunk = sorted(rows[start : start + size * CHUNK], key=lambda row: len(row[0]))
        group = [chunk[i : i + size] for i in range(0, len(chunk), size)]
        rng.shuffle(group)
        packed += [_pad(part) for part in group]
    return packed


def _pad(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), vocabulary.VOCABULARY[vocabulary.PAD])
    labels = torch.full((len(rows), width), -100)
    for i, (row, front) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, front : len(row)] = torch.tensor(row[front:])
    return ids, labels


def build_model(seed: int) -> Qwen3ForCausalLM:
    """Return the untrained policy, about one million parameters."""
    torch.manual_seed(seed)
    ids = vocabulary.VOCABULARY
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(ids), hidden_size=128, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
            max_position_embeddings=192, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None, eos_token_id=ids[vocabulary.END], pad_token_id=ids[vocabulary.PAD],
        )
    )  # fmt: skip


def train(model: Qwen3ForCausalLM, data: list[tuple[Tensor, Tensor]], lr: float) -> None:
    """Fit the completions by maximum likelihood: AdamW, short warm-up, cosine to a tenth."""
    optimiser = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = torch.optim.lr_scheduler.LinearLR(optimiser, 0.05, total_iters=60)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(data) - 60, lr / 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [warm, cool], [60])
    begin, recent = time.time(), []
    for step, (ids, labels) in enumerate(track(data, description="base")):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        recent.append(loss.item())
        if step % 100 == 99:
            print(
                f"step {step + 1} loss {sum(recent) / len(recent):.4f} {time.time() - begin:.0f} s",
                flush=True,
            )
            recent = []


def make_base(folder: Path, batch: int, seed: int, resume: int) -> None:
    """Train all phases; weights are saved (and so rounded to float16) after each."""
    tokenizer, model = vocabulary.build_tokenizer(), build_model(seed)
    if resume:
        model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for index, phase in enumerate(PHASES):
        if index < resume:
            continue
        rows = encode(write_corpus(phase, phase.steps * batch, seed + 1000 * index), tokenizer)
        train(model, batches(rows, batch, seed), phase.lr)
        save(model, tokenizer, folder)


def save(model: Qwen3ForCausalLM, tokenizer, folder: Path) -> None:
    """Write weights in float16, configuration, tokenizer and generation settings."""
    ids = vocabulary.VOCABULARY
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        max_new_tokens=56,
        eos_token_id=ids[vocabulary.END],
        pad_token_id=ids[vocabulary.PAD],
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.float()


@torch.no_grad()
def roll_out(model: Qwen3ForCausalLM, tokenizer, tasks: list[Task], size: int = 256) -> Table:
    """Sample one completion a task from the base at temperature 1, with the columns that the step scorer
    reads.
    """
    tables = []
    for start in track(range(0, len(tasks), size), description="rollouts"):
        part = tasks[start : start + size]
        texts = [
            tokenizer.apply_chat_template(t.prompt, add_generation_prompt=True, tokenize=False) for t in part
        ]
        prompt = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        tokens = model.generate(**prompt, max_new_tokens=56, do_sample=True, top_k=0)[
            :, prompt["input_ids"].shape[1] :
        ]
        ended = tokens == tokenizer.eos_token_id
        mask = ended.cumsum(1) - ended.long() == 0
        fields = {name: [task.fields[name] for task in part] for name in part[0].fields}
        fields["completion"] = [
            tokenizer.decode(row[used], skip_special_tokens=True)
            for row, used in zip(tokens, mask, strict=True)
        ]
        columns = {
            "prompt_tokens": ("b q", prompt["input_ids"]),
            "prompt_mask": ("b q", prompt["attention_mask"].bool()),
            "tokens": ("b s", tokens.masked_fill(~mask, 0)),
            "mask": ("b s", mask),
        }
        tables.append(Table.of(columns, fields))
    return annotate(Table.concat(tables))


def label(table: Table) -> Tensor:
    """Return the truth of every step by recomputation, float (b, n), NaN where there is none."""
    truth = torch.full(table["turn"].shape, float("nan"))
    rows = zip(*(table.fields[name] for name in ("completion", "expression", "numbers")), strict=True)
    for row, (text, expression, numbers) in enumerate(rows):
        valid = judge(think_text(text), expression, numbers).valid[: int(table["turn"][row].sum())]
        truth[row, : len(valid)] = torch.tensor(valid, dtype=torch.float)
    return truth


def first_steps(table: Table, truth: Tensor, count: int) -> tuple[Table, Tensor]:
    """Return the first rows that hold `count` labelled steps."""
    rows = torch.arange(table.rows)[(~truth.isnan()).sum(1).cumsum(0) <= count]
    return table.take(rows), truth[rows]


def fit_scorer(table: Table, truth: Tensor, epochs: int, seed: int) -> StepScorer:
    """Fit the scorer: right or wrong at the last token of each step, and next-token prediction as a second
    task.
    """
    torch.manual_seed(seed)
    ids = vocabulary.VOCABULARY
    net = ScorerNet(ScorerConfig(len(ids)))
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    tokens, place = join(table)
    ends, exists = step_ends(table)
    spots, exists = place.gather(1, ends).clamp(min=0), exists & ~truth.isnan()
    for _ in track(range(epochs), description="scorer"):
        for rows in torch.randperm(len(tokens)).split(64):
            hidden = net.read(tokens[rows])
            logits = net.head(hidden)[..., 0].gather(1, spots[rows])[exists[rows]]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth[rows][exists[rows]])
            words = hidden[:, :-1] @ net.tokens.weight.T
            loss = loss + 0.5 * torch.nn.functional.cross_entropy(
                words.transpose(1, 2), tokens[rows][:, 1:], ignore_index=0
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return StepScorer(net)


def make_scorer(folder: Path, count: int, epochs: int, seed: int) -> None:
    """Sample the shipped base, label about `count` steps, fit, measure on test expressions, and save."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, world = AutoTokenizer.from_pretrained(folder), ArithmeticWorld()
    train_rows = roll_out(model, tokenizer, world.tasks("train", seed, 1_000_000, count))
    test_rows = roll_out(model, tokenizer, world.tasks("test", count=world.config.test_prompts))
    table, truth = first_steps(train_rows, label(train_rows), count)
    scorer = fit_scorer(table, truth, epochs, seed)
    scores, known = scorer.score(test_rows), label(test_rows)
    judged = ~known.isnan()
    facts = {
        "held_out_auc": float(roc_auc_score(known[judged], scores[judged])),
        "held_out_steps": float(judged.sum()),
        "held_out_valid": float(known[judged].mean()),
        "train_steps": float((~truth.isnan()).sum()),
        "parameters": float(sum(p.numel() for p in scorer.net.parameters())),
    }
    scorer.save(folder, **{name: round(value, 4) for name, value in facts.items()})
    print(json.dumps(facts))


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[1] / "src/concordant/worlds/lm_arithmetic/base"
    parser.add_argument("--part", choices=("base", "scorer", "both"), default="both")
    parser.add_argument("--folder", type=Path, default=default)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--scorer-steps", type=int, default=3000)
    parser.add_argument("--scorer-epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=int, default=0, help="skip this many phases, start from --folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part in ("base", "both"):
        make_base(options.folder, options.batch, options.seed, options.resume)
    if options.part in ("scorer", "both"):
        make_scorer(options.folder, options.scorer_steps, options.scorer_epochs, options.seed)


if __name__ == "__main__":
    main()
