"""Log-probability of chosen tokens: one kernel for sampling and scoring, and the passes that score rows."""

import torch
from torch import Tensor

from concordant.policies.forward import Forward
from concordant.policies.prefixes import join, tree

CHUNK = 1 << 24  # logits that are turned into float32 at a time


def _chunk(logits: Tensor, tokens: Tensor, temperature: Tensor | float) -> Tensor:
    scaled = logits.float()
    if not (isinstance(temperature, float) and temperature == 1.0):
        scaled = scaled / temperature
    return torch.log_softmax(scaled, -1).gather(-1, tokens[:, None]).squeeze(-1)


def chosen_logp(logits: Tensor, tokens: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Return the log-probability of the chosen tokens under softmax(logits / temperature).

    Formula: `logits[token] / T - logsumexp(logits / T)`, in float32, a few rows at a time.

    Args:
        logits: shape (c, vocabulary).
        tokens: int64, shape (c).
        temperature: a number, or a tensor of shape (c).

    Returns:
        float32, natural logarithm, shape (c), with graph.
    """
    rows = max(1, CHUNK // logits.shape[-1])
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None]
    if len(logits) <= rows:
        return _chunk(logits, tokens, temperature)
    parts = temperature.split(rows) if isinstance(temperature, Tensor) else [temperature] * len(logits)
    pieces = zip(logits.split(rows), tokens.split(rows), parts, strict=False)
    return torch.cat([_chunk(*piece) for piece in pieces])


def _packed_logp(
    forward: Forward, prompt: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor, temperature: Tensor
) -> Tensor:
    salt = temperature.to(torch.float32).view(torch.int32).long()
    prefixes = tree(prompt, prompt_mask, tokens, mask, salt)
    logits = forward.packed(prefixes.tokens, prefixes.positions, prefixes.layout, prefixes.parents)
    value = chosen_logp(logits, prefixes.chosen, temperature[prefixes.rows])
    return torch.where(mask, value[prefixes.of_step], 0.0)


def _padded_logp(
    forward: Forward, prompt: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor, temperature: Tensor
) -> Tensor:
    rows = join(prompt, prompt_mask, tokens, mask)
    width = rows.tokens.shape[1]
    place = torch.arange(width, device=mask.device)
    seen = (place < rows.length[:, None]) | (place == 0)
    logits = forward.padded(rows.tokens[:, :-1], seen[:, :-1])
    before = (rows.prompt[:, None] + torch.arange(mask.shape[1], device=mask.device) - 1).clamp(max=width - 2)
    at, step = mask.nonzero(as_tuple=True)
    value = chosen_logp(logits[at, before[at, step]], tokens[at, step], temperature[at])
    return torch.zeros(mask.shape, device=mask.device).index_put((at, step), value)


def completion_logp(
    forward: Forward, prompt: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor, temperature: Tensor
) -> Tensor:
    """Return the log-probability of the trained tokens of each row, with graph.

    Where the model allows it, no padding is computed and each distinct prefix once: a prompt that several rows share,
    the beginning that completions have in common, equal rows. The gradient is that of the padded batch, up to the order
    of floating-point sums.

    Args:
        forward: the model.
        prompt: left-padded ids, int64 (b q).
        prompt_mask: bool (b q).
        tokens: completion ids, int64 (b s).
        mask: trained tokens, bool (b s); tokens before the last trained one are read as context.
        temperature: float32 (b).

    Returns:
        float32, shape (b s); 0 outside `mask`.
    """
    if not bool(mask.any()):
        return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    if forward.packs:
        return _packed_logp(forward, prompt, prompt_mask, tokens, mask, temperature)
    return _padded_logp(forward, prompt, prompt_mask, tokens, mask, temperature)
