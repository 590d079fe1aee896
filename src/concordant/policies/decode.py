"""The decoding loop: rows with the same prefix are computed once, finished rows leave, random numbers come by row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from concordant.policies.forward import Forward
from concordant.policies.logprob import chosen_logp


@dataclass(frozen=True)
class Decoded:
    """Sampled completions (b s): ids, which of them are real (the end token included), log-probabilities."""

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
    total = torch.softmax(logits.float() / temperature, -1).cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True).squeeze(-1)
    return place.clamp(max=logits.shape[-1] - 1)


class Prefixes:
    """The distinct live prefixes of a decoding loop, one a slot, with their cache and the logits that follow each."""

    def __init__(self, forward: Forward, tokens: Tensor, mask: Tensor, rows: int, room: int) -> None:
        self.take = forward.plain(tokens.shape[1] + room) or forward
        self.cache = forward.new_cache(rows, room)
        self.logits = forward.read(tokens, mask, self.cache)
        self.width = tokens.shape[1]
        self.position = mask.sum(1)
        self.masks = forward.step_masks(mask, room)

    def step(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Continue the prefix in slot `parents[i]` by `tokens[i]`; return the slot of the result.

        Parents are sorted; a prefix may be continued several times, or be dropped.
        """
        slot = torch.arange(len(parents), device=parents.device)
        if len(parents) != len(self.position) or not torch.equal(parents, slot):
            slot = self.cache.branch(parents)
            order = slot.argsort()
            parents, tokens = parents[order], tokens[order]
            self.position = self.position[parents]
            self.masks = None if self.masks is None else self.masks[parents]
        self.width += 1
        mask = None if self.masks is None else self.masks[:, : self.width]
        self.logits = self.take.step(tokens, mask, self.position, self.cache)
        self.position = self.position + 1
        return slot


def decode(
    forward: Forward,
    prompts: tuple[Tensor, Tensor],
    source: Tensor,
    uniform: Tensor,
    temperature: float,
    stops: Tensor,
) -> Decoded:
    """Sample completions.

    Args:
        forward: the model.
        prompts: ids and mask of the distinct prompts, left-padded, each (u q).
        source: which prompt each row continues, int64 (b).
        uniform: random numbers, float64 (b s); their width is the longest completion.
        temperature: 0 is greedy, and log-probabilities are those at temperature 1 then.
        stops: ids that end a completion, int64 (e), possibly none.

    Returns:
        The completions, cut to the longest one; ids after the end are 0. A row without an end token was cut off.
    """
    kinds = (torch.int64, torch.bool, torch.float32)
    tokens, mask, logp = (torch.zeros(uniform.shape, dtype=kind, device=source.device) for kind in kinds)
    rows = torch.arange(len(source), device=source.device)  # rows without an end token so far
    with torch.inference_mode():
        prefixes = Prefixes(forward, *prompts, len(rows), uniform.shape[1])
        size = prefixes.logits.shape[-1]
        for t in range(uniform.shape[1]):
            logits = prefixes.logits[source]
            chosen = choose(logits, uniform[rows, t], temperature)
            tokens[rows, t], mask[rows, t] = chosen, True
            logp[rows, t] = chosen_logp(logits, chosen, temperature or 1.0)
            live = ~torch.isin(chosen, stops)
            rows, following = rows[live], (source * size + chosen)[live]
            if len(rows) == 0 or t + 1 == uniform.shape[1]:
                break
            following, source = following.unique(return_inverse=True)
            source = prefixes.step(following // size, following % size)[source]
    used = mask.any(0)
    return Decoded(tokens[:, used], mask[:, used], logp[:, used])
