"""Tiny models with lively (not nearly uniform) next-token distributions, saved to disk."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHARACTERS = "0123456789+=?abc "
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "Llama": {"num_key_value_heads": 4},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 6},  # no packing: rows are padded
}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def make_tokenizer(template: str | None = None, pad: bool = True) -> transformers.PreTrainedTokenizerFast:
    pieces = ["<eos>", "<unk>", "<u>", "<a>", "<think>", "</think>", *CHARACTERS, *(["<pad>"] if pad else [])]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    special = {"eos_token": "<eos>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pad else {})
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<u>", "<a>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


def make_model(
    folder: Path, family: str = "Qwen3", window: int = 64, template: str | None = None, pad: bool = True
) -> Path:
    tokenizer = make_tokenizer(template, pad)
    config = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    options = {
        "vocab_size": len(tokenizer),
        "initializer_range": 0.25,
        "eos_token_id": 0,
        "bos_token_id": None,
    }
    made = config(max_position_embeddings=window, pad_token_id=None, **SIZES, **options, **FAMILIES[family])
    getattr(transformers, f"{family}ForCausalLM")(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
