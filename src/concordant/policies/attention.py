"""An attention function for transformers models that lets rows share the positions they have in common.

It is registered under its own name through `AttentionInterface` and computes what `sdpa` computes. Called with a
`Layout`, the model's other layers see each distinct prefix once, and attention alone is laid out by rows.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "concordant"


@dataclass(frozen=True)
class Layout:
    """Where the nodes of a prefix tree stand in rows: position t of a row is its prefix of t + 1 tokens.

    Rows come in blocks of similar length, so that attention pads little.
    """

    blocks: tuple[Tensor, ...]
    """Node at each position of each block of rows, int64 (b, l) each; anything after the end of a row."""
    first: Tensor
    """Position that computes each node, counted through all blocks one after the other, int64 (n)."""
    used: list[int] = field(default_factory=list)
    """Layers that used the layout; a model that passes no options on to its attention would leave this empty."""


def _flat(nodes: Tensor) -> Tensor:
    """Bring heads together: (1, heads, n, d) to (n, heads d)."""
    return nodes.transpose(1, 2).reshape(nodes.shape[2], -1)


def _spread(flat: Tensor, block: Tensor, size: int) -> Tensor:
    """Put nodes into the rows of a block: (n, heads d) to (b, heads, l, d)."""
    return flat.index_select(0, block.reshape(-1)).view(*block.shape, -1, size).transpose(1, 2)


def _packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    layout.used.append(1)
    size, shared = value.shape[3], query.shape[1] != key.shape[1]
    flat = [(_flat(x), x.shape[3]) for x in (query, key, value)]
    done = []
    for block in layout.blocks:
        q, k, v = (_spread(x, block, width) for x, width in flat)
        rows = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=shared)
        done.append(rows.transpose(1, 2).reshape(block.numel(), -1))
    return torch.cat(done).index_select(0, layout.first).view(1, len(layout.first), -1, size)


def attend_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention of one new token a row.

    The query heads that share a key head stand where queries stand, so no key is copied. On a CPU, two batched products
    take a third of the time of the fused kernel, which is made for many queries; in half precision that kernel stays,
    because it sums in float32.
    """
    rows, heads, _, size = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    if query.device.type != "cpu" or query.dtype != torch.float32:
        mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    else:
        grouped = grouped * (size**-0.5 if scaling is None else scaling)
        scores = grouped @ key.transpose(2, 3)
        mixed = (scores if mask is None else scores.add_(mask)).softmax(-1) @ value
    return mixed.reshape(rows, 1, heads, value.shape[3])


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: heads second in the arguments (b, heads, t, d), third in the result."""
    if layout is not None:
        return _packed(query, key, value, layout, scaling), None
    if query.shape[2] == 1 and query.shape[1] % key.shape[1] == 0:
        return attend_one(query, key, value, attention_mask, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


def install(model: Any) -> bool:
    """Make a model that runs on `sdpa` use this attention; return whether it does."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if model.config._attn_implementation == NAME:
        return True
    if model.config._attn_implementation != "sdpa" or not getattr(
        model, "_supports_attention_backend", False
    ):
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)
