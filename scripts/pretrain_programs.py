"""Make the base policy that ships with the world `lm/programs`, by maximum likelihood on random programs.

    python scripts/pretrain_programs.py        # about 20 minutes on one core

Pairs of (examples, program) are drawn fresh from the train split; same seed, machine and thread count give the same
bits.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from rich.progress import track
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from concordant.worlds.lm_programs import problems, vocabulary
from concordant.worlds.lm_programs.language import to_python
from pretrain_arithmetic import batches, train


@dataclass(frozen=True)
class Phase:
    """One pass of maximum likelihood over its own freshly written corpus."""

    steps: int
    lr: float
    kinds: Mapping[tuple[int, bool], float]
    """Share of each (depth, with a branch)."""


PHASES = (
    Phase(500, 2e-3, {(2, False): 0.55, (2, True): 0.15, (3, False): 0.10, (3, True): 0.20}),
    Phase(1500, 2e-3, {(2, False): 0.10, (2, True): 0.05, (3, False): 0.10, (3, True): 0.75}),
)
"""Single operators first, then mostly branches."""
PYTHON = 0.15
"""Share of pairs whose program is a Python expression."""


def write_pair(rng: Random, phase: Phase) -> tuple[str, str]:
    """Return one (question, completion)."""
    height, branchy = rng.choices(list(phase.kinds), list(phase.kinds.values()))[0]
    program = problems.draw(rng, height, branchy=branchy, test=False)
    problem = problems.pose(program, rng, pairs=problems.PAIRS, tests=1, flat=1)
    python = rng.random() < PYTHON
    text = to_python(program.text) if python else program.text
    return problems.question(problem, python=python), str(text)


def encode(pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """Return token ids of each pair and the number of prompt tokens in front."""
    ids, rows = vocabulary.VOCABULARY, []
    for question, completion in pairs:
        prompt = [vocabulary.USER, *question.split(), vocabulary.ASSISTANT]
        text = [*prompt, *completion.split(), vocabulary.END]
        rows.append(([ids[piece] for piece in text], len(prompt)))
    return rows


def build_model(seed: int) -> Qwen3ForCausalLM:
    """Return the untrained policy, about one million parameters."""
    torch.manual_seed(seed)
    ids = vocabulary.VOCABULARY
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(ids), hidden_size=128, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
            max_position_embeddings=vocabulary.WINDOW,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None, eos_token_id=ids[vocabulary.END], pad_token_id=ids[vocabulary.PAD],
        )
    )  # fmt: skip
    with torch.no_grad():
        for number in vocabulary.NUMBERS:
            model.model.embed_tokens.weight[ids[number], :64] = 0.03 * waves(int(number))
    return model


def waves(number: int) -> Tensor:
    """Return 64 sines and cosines of a number, periods from 3 to 256: sums and differences are easy to learn then."""
    angles = 2 * math.pi * number / torch.logspace(math.log2(3), 8, 32, base=2)
    return torch.cat([angles.sin(), angles.cos()])


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write weights in float16, configuration, tokenizer and generation settings."""
    ids = vocabulary.VOCABULARY
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        max_new_tokens=problems.LENGTH + 2,
        eos_token_id=ids[vocabulary.END],
        pad_token_id=ids[vocabulary.PAD],
    )
    model.half().save_pretrained(folder)
    vocabulary.build_tokenizer().save_pretrained(folder)
    model.float()


def main() -> None:
    """Write the corpus, fit, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[1] / "src/concordant/worlds/lm_programs/base"
    parser.add_argument("--folder", type=Path, default=default)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build_model(options.seed)
    for index, phase in enumerate(PHASES):
        rng, count = Random(options.seed + 1000 * index), phase.steps * options.batch
        pairs = [write_pair(rng, phase) for _ in track(range(count), description="corpus")]
        train(model, batches(encode(pairs), options.batch, options.seed), phase.lr)
        save(model, options.folder)


if __name__ == "__main__":
    main()
