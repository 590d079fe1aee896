"""Turn prompts (text or chat messages) into left-padded token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from concordant.core.errors import DataError

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts of a call, and which of them each task uses."""

    tokens: Tensor
    """Left-padded ids, int64 (distinct, q)."""
    mask: Tensor
    """True on prompt tokens, bool (distinct, q)."""
    of_task: Tensor
    """Row of `tokens` for each task, int64 (tasks)."""
    texts: list[str]
    """What the model is given for each task, special tokens included."""


def render(tokenizer: Any, prompt: str | Messages, index: int) -> tuple[str, bool]:
    """Return the text of a prompt, and whether the tokenizer still has to add its special tokens.

    With a chat template, plain text is one user message. Without one, chat messages are refused.
    """
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), False
    if not isinstance(prompt, str):
        raise DataError(
            f"prompt {index} is a list of chat messages, but the tokenizer has no chat template; "
            "give plain text, or set tokenizer.chat_template"
        )
    return prompt, True


def encode(tokenizer: Any, prompts: Sequence[str | Messages], window: int | None, new_tokens: int) -> Prompts:
    """Tokenise prompts; each distinct token sequence appears once.

    Args:
        tokenizer: a transformers tokenizer.
        prompts: text or chat messages.
        window: positions the model has, or None if it has no limit.
        new_tokens: room that the completion needs.

    Raises:
        DataError: if a prompt is empty or does not leave `new_tokens` positions.
    """
    texts = [render(tokenizer, prompt, index) for index, prompt in enumerate(prompts)]
    distinct: dict[tuple[int, ...], int] = {}
    known: dict[str, int] = {}
    of_task = []
    for index, (text, special) in enumerate(texts):
        if text not in known:
            ids = tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
            _check_length(index, len(ids), window, new_tokens)
            known[text] = distinct.setdefault(ids, len(distinct))
        of_task.append(known[text])
    width = max(len(ids) for ids in distinct)
    pad = pad_id(tokenizer)
    tokens = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in distinct])
    lengths = torch.tensor([len(ids) for ids in distinct])
    mask = torch.arange(width) >= (width - lengths)[:, None]
    return Prompts(tokens, mask, torch.tensor(of_task), [text for text, _ in texts])


def pad_id(tokenizer: Any) -> int:
    """Id to fill gaps with; masks never depend on it, so sharing it with the end token is harmless."""
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0


def _check_length(index: int, length: int, window: int | None, new_tokens: int) -> None:
    if length == 0:
        raise DataError(f"prompt {index} has no tokens; the first sampled token needs at least one to follow")
    if window is not None and length + new_tokens > window:
        raise DataError(
            f"prompt {index} has {length} tokens; with max_new_tokens={new_tokens} it exceeds the model's window of "
            f"{window} (max_position_embeddings). Shorten the prompt to at most {max(window - new_tokens, 0)} tokens, "
            "lower max_new_tokens, or use a model with a longer window"
        )
