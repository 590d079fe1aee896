"""A tiny character-level language model on disk, and data and rewards for it."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHARACTERS = "0123456789+-= abcdefghijklmnopqrstuvwxyz<>/"
REWARDS = """
def correct(completion: str, answer: str) -> float:
    return float(answer in completion)


def digits(completions, **kwargs):
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]
"""
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def make_model(folder: Path, family: str = "llama", window: int = 64) -> Path:
    """Save a randomly initialised model with its tokenizer."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(CHARACTERS)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    config, model = FAMILIES[family]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    made = model(
        config(
            vocab_size=len(vocabulary), num_key_value_heads=2, max_position_embeddings=window, **sizes, **ids
        )
    )
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_data(folder: Path, count: int = 30) -> tuple[Path, Path]:
    """Write prompts.jsonl and my_rewards.py; return both."""
    lines = [json.dumps({"prompt": f"{i}+{i + 1}=", "answer": str(2 * i + 1)}) for i in range(count)]
    data, rewards = folder / "prompts.jsonl", folder / "my_rewards.py"
    data.write_text("\n".join(lines) + "\n")
    rewards.write_text(REWARDS)
    return data, rewards
