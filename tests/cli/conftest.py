"""The command line in this process (quick) or in one of its own; and a user's own tiny model, data and rewards."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("PYTHONPATH", str(ROOT / "src"))  # for the processes that a comparison starts

REWARDS = '''
def correct(completion: str, answer: str) -> float | None:
    words = completion.split()
    return float(words[-1] == answer) if words else None


def brief(completion: str) -> float:
    return float(len(completion.split()) <= 12)


def digits(prompts, completions, answer, **kwargs):
    """In TRL's style."""
    return [sum(c.isdigit() for c in text) / (1 + len(text)) for text in completions]
'''


@pytest.fixture
def call():
    """Call a verb in this process; gives exit code, standard output, standard error."""
    from concordant.cli.app import app

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="concordant")

    return run


@pytest.fixture
def shell():
    """Call a verb in a process of its own."""

    def run(*words, cwd=None):
        return subprocess.run(
            [sys.executable, "-m", "concordant", *map(str, words)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def tiny_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = string.digits + string.ascii_letters + " .,?+-*/=<>\n"
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *signs])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """A folder with my-model (Llama), my-qwen (Qwen2), prompts.jsonl and my_rewards.py."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("own")
    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    models = {
        "my-model": LlamaForCausalLM(LlamaConfig(**sizes)),
        "my-qwen": Qwen2ForCausalLM(Qwen2Config(**sizes)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(4) for b in range(3)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "my_rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def own_arguments(own):
    """The options that name one's own model, data and two rewards."""
    return [
        *("--model", own / "my-model"),
        *("--data", own / "prompts.jsonl"),
        *("--reward", f"{own / 'my_rewards.py'}:correct"),
        *("--reward", f"{own / 'my_rewards.py'}:brief"),
    ]
