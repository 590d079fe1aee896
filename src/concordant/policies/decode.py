"""The decoding loop: each distinct prompt is read once, finished rows leave the batch, random numbers come by row."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from concordant.policies.logprob import Forward, chosen_logp

SHRINK = 0.8  # compact the batch when at most this share of its rows is unfinished


@dataclass(frozen=True)
class Decoded:
    """Sampled completions: ids, which of them are real (the end token included), and their log-probabilities, all (b s)."""

    tokens: Tensor
    mask: Tensor
    logp: Tensor


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Sample one token a row by inverting the cumulative distribution of softmax(logits / temperature).

    Args:
        logits: shape (b, vocabulary).
        uniform: float64 in [0, 1), shape (b).
        temperature: above 0; 0 takes the most likely token.

    Returns:
        int64, shape (b).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probability = torch.softmax(logits.float() / temperature, -1)
    total = probability.cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).squeeze(-1)
    return place.clamp(max=logits.shape[-1] - 1)


class Batch:
    """The unfinished rows of a decoding loop, with their cache; it only ever shrinks."""

    def __init__(self, forward: Forward, tokens: Tensor, mask: Tensor, source: Tensor, room: int) -> None:
        from transformers import DynamicCache

        self.forward, self.rows = forward, torch.arange(len(source), device=source.device)
        self.cache: Any = DynamicCache(config=forward.model.config)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        logits = forward(tokens, forward.prefix_mask(mask), positions, 1, self.cache)
        self.length = tokens.shape[1]
        self.logits = logits[:, -1].index_select(0, source)
        self.position = mask.sum(1).index_select(0, source)
        seen = torch.nn.functional.pad(mask, (0, room), value=True)
        self.seen = (seen if forward.own_mask else seen.long()).index_select(0, source)
        self.padded = not (forward.own_mask and bool(mask.all()))
        self.cache.batch_select_indices(source)

    def step(self, tokens: Tensor) -> None:
        """Feed one token a row."""
        self.length += 1
        mask = self.seen[:, : self.length] if self.padded else None
        if mask is not None and self.forward.own_mask:
            mask = mask[:, None, None]
        self.logits = self.forward(tokens[:, None], mask, self.position[:, None], 1, self.cache)[:, -1]
        self.position = self.position + 1

    def keep(self, index: Tensor) -> None:
        """Drop all rows but these."""
        self.rows, self.seen, self.position = self.rows[index], self.seen[index], self.position[index]
        self.cache.batch_select_indices(index)


def decode(
    forward: Forward,
    prompts: tuple[Tensor, Tensor],
    source: Tensor,
    uniform: Tensor,
    temperature: float,
    stops: Tensor,
    pad: int,
) -> Decoded:
    """Sample completions.

    Args:
        forward: the model.
        prompts: ids and mask of the distinct prompts, left-padded, each (distinct, q).
        source: which prompt each row continues, int64 (b).
        uniform: random numbers, float64 (b, s); their width is the longest completion.
        temperature: 0 is greedy, and log-probabilities are those at temperature 1 then.
        stops: ids that end a completion, int64 (e), possibly none.
        pad: id written after the end.

    Returns:
        The completions, cut to the longest one. A row without an end token was cut off at the width.
    """
    count, width = uniform.shape
    tokens = torch.full((count, width), pad, device=source.device)
    mask = torch.zeros((count, width), dtype=torch.bool, device=source.device)
    logp = torch.zeros((count, width), device=source.device)
    every = (
        1 if source.device.type == "cpu" else 8
    )  # how often the host waits for the device to count finished rows
    with torch.inference_mode():
        batch = Batch(forward, *prompts, source, width)
        done = torch.zeros(count, dtype=torch.bool, device=source.device)
        for t in range(width):
            chosen = choose(batch.logits, uniform[batch.rows, t], temperature)
            value = chosen_logp(batch.logits, chosen, temperature or 1.0)
            mask[batch.rows, t] = ~done
            tokens[batch.rows, t] = chosen.masked_fill(done, pad)
            logp[batch.rows, t] = value.masked_fill(done, 0.0)
            done = done | (chosen[:, None] == stops).any(1)
            if t + 1 == width:
                break
            if (t + 1) % every == 0:
                left = (~done).nonzero()[:, 0]
                if len(left) == 0:
                    break
                if len(left) <= SHRINK * len(done):
                    batch.keep(left)
                    chosen, done = chosen[left], done[left]
            batch.step(chosen)
    steps = max(int(mask.any(0).sum()), 1)
    return Decoded(tokens[:, :steps], mask[:, :steps], logp[:, :steps])
