"""Log-probability of chosen tokens: one kernel for sampling and for scoring, and the forward pass that scores rows."""

import inspect
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 24  # logits that are turned into float32 at a time


def _chunk(logits: Tensor, tokens: Tensor, temperature: Tensor | float) -> Tensor:
    scaled = logits.float()
    if not (isinstance(temperature, float) and temperature == 1.0):
        scaled = scaled / temperature
    return scaled.gather(-1, tokens[..., None]).squeeze(-1) - scaled.logsumexp(-1)


def chosen_logp(logits: Tensor, tokens: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Return the log-probability of the chosen tokens under softmax(logits / temperature).

    Formula: `logits[token] / T - logsumexp(logits / T)`, in float32, a few rows at a time.

    Args:
        logits: shape (b, ..., vocabulary).
        tokens: int64, shape (b, ...).
        temperature: a number, or a tensor of shape (b).

    Returns:
        float32, natural logarithm, shape (b, ...), with graph.
    """
    rows = max(1, CHUNK // max(logits[0].numel(), 1)) if len(logits) else 1
    if isinstance(temperature, Tensor):
        temperature = temperature.view(-1, *[1] * (logits.dim() - 1))
    if rows >= len(logits):
        return _chunk(logits, tokens, temperature)
    parts = [temperature] * len(logits)
    if isinstance(temperature, Tensor):
        parts = list(temperature.split(rows))
    pieces = zip(logits.split(rows), tokens.split(rows), parts, strict=False)
    return torch.cat([_chunk(*piece) for piece in pieces])


class Forward:
    """How to call one model: which arguments it takes, and whether it accepts a ready-made 4D mask.

    A mask that is made once for a whole call is cheaper than one made in every forward pass. It fits models in which all
    layers attend to everything before them, with `sdpa` attention; others get the usual 2D mask.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(inner.forward).parameters
        self.positions = "position_ids" in accepted
        self.keep = "logits_to_keep" in accepted
        config = inner.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ["full_attention"]
        windowed = getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None)
        self.full = all(kind == "full_attention" for kind in kinds) and not windowed
        self.own_mask = self.full and config._attn_implementation == "sdpa"

    def __call__(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor, keep: int, cache: Any = None
    ) -> Tensor:
        """Return the logits of the last `keep` positions."""
        options: dict[str, Any] = {"position_ids": positions} if self.positions else {}
        if self.keep:
            options["logits_to_keep"] = keep
        if cache is not None:
            options["past_key_values"] = cache
        output = self.model(input_ids=tokens, attention_mask=mask, use_cache=cache is not None, **options)
        logits: Tensor = output.logits
        return logits[:, -keep:]

    def prefix_mask(self, mask: Tensor) -> Tensor | None:
        """Return the attention mask for a pass over a whole sequence whose real tokens are where `mask` (b t) is True.

        None stands for plain causal attention, which is right when no padding comes before a real token.
        """
        if self.own_mask and bool(mask[:, 0].all()):
            return None
        if not self.own_mask:
            return mask.long()
        t = torch.arange(mask.shape[1], device=mask.device)
        seen = (t[:, None] >= t) & mask[:, None, :]
        return (seen | (t[:, None] == t))[:, None]  # padding sees itself: an empty row would give NaN


def completion_logp(
    forward: Forward,
    prompt: Tensor,
    prompt_mask: Tensor,
    tokens: Tensor,
    mask: Tensor,
    temperature: Tensor | float,
) -> Tensor:
    """Return the log-probability of completion tokens; 0 outside `mask`, with graph.

    Columns of padding that all rows share are cut on both sides before the pass. Rows are left-padded prompts (b q)
    followed by completions (b s) whose real tokens are contiguous from the first step.

    Returns:
        float32, shape (b s).
    """
    steps = int(mask.any(0).sum())
    result = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    if steps == 0:
        return result
    first = prompt.shape[1] - int(prompt_mask.any(0).sum())
    chosen, real = tokens[:, :steps], mask[:, :steps]
    ids = torch.cat([prompt[:, first:], chosen[:, :-1]], dim=1)  # the last token is predicted, never read
    seen = torch.cat([prompt_mask[:, first:], real[:, :-1]], dim=1)
    positions = (seen.long().cumsum(1) - 1).clamp(min=0)
    logits = forward(ids, forward.prefix_mask(seen), positions, steps)
    values = torch.where(real, chosen_logp(logits, chosen, temperature), 0.0)
    if steps == mask.shape[1]:
        return values
    return torch.cat([values, result[:, steps:]], dim=1)
