"""World columns from sampled tokens: which think step a token belongs to, and where the answer stands."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from concordant.core.table import Table
from concordant.rewards import answer_span, answer_text, normalise_answer, think_span


@dataclass(frozen=True)
class Layout:
    """Token-level reading of one completion."""

    segment: list[int]
    """Step index of each token, -1 outside."""
    answer: list[bool]
    """Whether the token is part of the answer's content."""


def lay_out(pieces: tuple[str, ...], completion: str) -> Layout:
    """Locate steps and answer in a completion given the text of each token.

    A separator belongs to the step that it ends; empty parts between separators are no steps.
    """
    think, answer = think_span(completion), answer_span(completion) or (0, 0)
    segment, inside, at, step, open_ = list[int](), list[bool](), 0, -1, False
    for piece in pieces:
        start, at = at, at + len(piece)
        inside.append(answer[0] <= start and at <= answer[1] and bool(piece.strip()))
        if not piece or start < think[0] or at > think[1]:
            segment.append(-1)
            continue
        separates = piece.strip(" ") in (";", "\n")
        if not separates and not open_ and piece.strip():
            step, open_ = step + 1, True
        segment.append(step if open_ else -1)
        open_ = open_ and not separates
    return Layout(segment, inside)


@lru_cache(maxsize=1)
def _pieces() -> tuple[str, ...]:
    from concordant.worlds.lm_arithmetic import vocabulary

    return tuple("" if piece in vocabulary.SPECIAL else piece for piece in vocabulary.VOCABULARY)


def annotate(table: Table, tokenizer: Any = None) -> Table:
    """Add the columns `segment`, `turn`, `answer_span` and `answer_id`.

    Args:
        table: with `tokens` and `mask`, shape (b, s), and the field `completion`.
        tokenizer: of the policy that sampled; None means the tokenizer of the shipped base.

    Returns:
        The table with segment (b s) int64, -1 outside; turn (b n) bool; answer_span (b s) bool; answer_id
        (b) int64, equal for equal normalised answers within the call, 0 for an answer that is missing or
        cannot be read.
    """
    tokens, mask = table["tokens"], table["mask"]
    segment, inside = torch.full(tokens.shape, -1), torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (ids, used) in enumerate(zip(tokens.tolist(), mask.tolist(), strict=True)):
        places = [i for i, flag in enumerate(used) if flag]
        pieces = tuple(_text(ids[i], tokenizer) for i in places)
        layout = lay_out(pieces, "".join(pieces))
        segment[row, places] = torch.tensor(layout.segment, dtype=torch.long)
        inside[row, places] = torch.tensor(layout.answer, dtype=torch.bool)
    count = int(segment.max()) + 1 if segment.numel() else 0
    turn = (
        torch.arange(count) <= segment.amax(1, keepdim=True)
        if count
        else torch.zeros(table.rows, 0, dtype=torch.bool)
    )
    answers = answer_ids(table.fields["completion"])
    return table.with_columns(
        {
            "segment": ("b s", segment),
            "turn": ("b n", turn),
            "answer_span": ("b s", inside),
            "answer_id": ("b", answers),
        }
    )


def _text(token: int, tokenizer: Any) -> str:
    if tokenizer is not None:
        return str(tokenizer.decode([token], skip_special_tokens=True))
    return _pieces()[token]


def answer_ids(completions: list[str]) -> Tensor:
    """Return one id per normalised answer, in sorted order from 1; 0 stands for an answer that cannot be
    read.

    >>> answer_ids(["<answer>7</answer>", "<answer>+07</answer>", "?"]).tolist()
    [1, 1, 0]
    """
    spellings = [normalise_answer(answer_text(text)) for text in completions]
    known = {
        text: index
        for index, text in enumerate(sorted({text for text in spellings if text is not None}), start=1)
    }
    return torch.tensor([0 if text is None else known[text] for text in spellings], dtype=torch.long)
