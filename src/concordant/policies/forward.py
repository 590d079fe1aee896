"""The ways a policy calls its model: packed, padded, and step by step with a cache."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, ModuleList
from torch.nn.functional import linear, rms_norm

from concordant.core.errors import ConfigError
from concordant.policies.attention import Layout, attend_one, install

PLAIN = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
STATIC = (
    "default",
    "linear",
    "llama3",
)  # kinds of rotary embedding that do not depend on the longest position


def _refuse_recurrent(model: Any) -> None:
    """Refuse models whose layers keep a state that padding and branching would spoil."""
    from transformers import DynamicCache

    odd = [
        layer
        for layer in DynamicCache(config=model.config).layers
        if not hasattr(layer, "batch_select_indices")
    ]
    if odd:
        raise ConfigError(
            f"{type(model).__name__} has recurrent or linear-attention layers ({type(odd[0]).__name__}), whose state "
            "cannot be padded or branched; use a model in which all layers are attention layers"
        )


def _is_plain(model: Any) -> bool:
    """Whether a step of this model is what `Plain` computes: known classes, float32, nothing hooked in or replaced."""
    if type(model).__name__ not in PLAIN or not type(model).__module__.startswith("transformers.models."):
        return False
    homes = (type(model).__module__, "transformers.activations")
    for module in model.modules():
        own = type(module) in (Linear, Embedding, ModuleList) or type(module).__module__ in homes
        if not own or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
    if any(weight.dtype != torch.float32 for weight in model.parameters()):
        return False
    return model.config.rope_parameters["rope_type"] in STATIC


def _normed(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _linear(module: Any, x: Tensor) -> Tensor:
    return linear(x, module.weight, module.bias)


class Plain:
    """One decoding step of a Llama, Qwen2 or Qwen3 model on its bare weights.

    It computes what the model's own modules compute, up to the order of floating-point sums. A step of a small model
    through its modules takes about as long to call as to compute; here the rotary table is made once a loop, queries
    and keys turn together, and few calls pass through a module.
    """

    def __init__(self, model: Any, positions: int) -> None:
        self.head, body = model.lm_head, model.model
        self.embedding, self.norm = body.embed_tokens.weight, body.norm
        self.layers = body.layers[: model.config.num_hidden_layers]
        place = torch.arange(positions, device=self.embedding.device)
        cos, sin = body.rotary_emb(self.embedding, place[None])
        self.half = sin.shape[-1] // 2
        self.cos = cos[0]
        self.sin = torch.cat([-sin[0, :, : self.half], sin[0, :, self.half :]], dim=-1)

    def step(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Read one more token a row (b); `mask` (b t) is added to scores. Return logits (b, vocabulary)."""
        x = self.embedding[tokens]
        turn = self.cos[positions][:, None], self.sin[positions][:, None]
        if mask is not None:
            mask = mask[:, None, None]
        for index, layer in enumerate(self.layers):
            read = _normed(layer.input_layernorm, x)
            x = x + self._attention(layer.self_attn, read, turn, mask, cache, index)
            read, mlp = _normed(layer.post_attention_layernorm, x), layer.mlp
            inner = mlp.act_fn(_linear(mlp.gate_proj, read)) * _linear(mlp.up_proj, read)
            x = x + _linear(mlp.down_proj, inner)
        return _linear(self.head, _normed(self.norm, x))

    def _attention(
        self, module: Any, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any, index: int
    ) -> Tensor:
        rows, size = len(x), module.head_dim
        query, key = _linear(module.q_proj, x), _linear(module.k_proj, x)
        heads = query.shape[1] // size
        if hasattr(module, "q_norm"):
            query = _normed(module.q_norm, query.view(rows, -1, size))
            key = _normed(module.k_norm, key.view(rows, -1, size))
        both = torch.cat([query, key], dim=1).view(rows, -1, size)
        both = (both * turn[0]).add_(both.roll(self.half, -1).mul_(turn[1]))
        value = _linear(module.v_proj, x).view(rows, -1, 1, size)
        keys, values = cache.update(both[:, heads:, None], value, index)
        mixed = attend_one(both[:, :heads, None], keys, values, mask, module.scaling)
        return _linear(module.o_proj, mixed.view(rows, -1))


class Forward:
    """Calls one model with the arguments that it takes.

    Models in which every layer attends to everything before (`packs`) use our attention function: prefixes are packed,
    and the mask of a decoding loop is made once. All others get the usual 2D mask, and rows are padded.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(inner.forward).parameters
        self.positions = "position_ids" in accepted
        self.keep = "logits_to_keep" in accepted
        config = inner.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        windowed = kinds is None and getattr(config, "sliding_window", None)
        full = not windowed and all(kind == "full_attention" for kind in kinds or ())
        self.layers = int(config.num_hidden_layers)
        _refuse_recurrent(inner)
        self.packs = full and self.positions and install(inner)

    def _call(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, **options: Any) -> Any:
        if self.positions:
            options["position_ids"] = positions
        return self.model(input_ids=tokens, attention_mask=mask, **options)

    def packed(self, tokens: Tensor, positions: Tensor, layout: Layout, keep: Tensor) -> Tensor:
        """Return the logits (c, vocabulary) after the nodes `keep` of a prefix tree, with graph."""
        ready = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device)  # 4D: the model makes no mask
        options: dict[str, Any] = {"use_cache": False, "layout": layout}
        if self.keep:
            options["logits_to_keep"] = keep
        logits: Tensor = self._call(tokens[None], ready, positions[None], **options).logits[0]
        if not layout.used:
            raise RuntimeError(
                f"{type(self.model).__name__} does not pass options on to its attention function"
            )
        return logits if self.keep else logits[keep]

    def padded(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return all logits (b, l, vocabulary) of rows that start at column 0 and are padded at the end, with graph."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        logits: Tensor = self._call(tokens, mask.long(), positions, use_cache=False).logits
        return logits

    def new_cache(self, rows: int, room: int) -> Any:
        """Return an empty cache for at most `rows` rows and `room` tokens after the prompts."""
        from concordant.policies.cache import Selected, Slots

        return Slots(self.layers, rows, room) if self.packs else Selected(config=self.model.config)

    def read(self, tokens: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Read left-padded prompts (u q) into the cache; return the logits (u, vocabulary) of the first new token."""
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        return self._cached(tokens, self._prompt_mask(mask), positions, cache)

    def plain(self, positions: int) -> Plain | None:
        """Return the short way to take steps, for a loop over at most `positions` positions; None if there is none.

        Asked before each loop: hooks and adapters come and go.
        """
        return Plain(self.model, positions) if self.packs and _is_plain(self.model) else None

    def step(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Read one more token a row (b); `mask` is a piece of `step_masks`. Return logits (b, vocabulary)."""
        if mask is not None and self.packs:
            mask = mask[:, None, None]
        return self._cached(tokens[:, None], mask, positions[:, None], cache)

    def step_masks(self, mask: Tensor, room: int) -> Tensor | None:
        """Return the mask (u, q + room) of a decoding loop, to be cut to what was read; None if nothing is hidden."""
        if self.packs and bool(mask.all()):
            return None
        seen = torch.nn.functional.pad(mask, (0, room), value=True)
        return self._added(seen) if self.packs else seen.long()

    def _cached(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        options: dict[str, Any] = {"logits_to_keep": 1} if self.keep else {}
        logits: Tensor = self._call(
            tokens, mask, positions, past_key_values=cache, use_cache=True, **options
        ).logits
        return logits[:, -1]

    def _prompt_mask(self, mask: Tensor) -> Tensor | None:
        if not self.packs:
            return mask.long()
        if bool(mask.all()):
            return None
        t = torch.arange(mask.shape[1], device=mask.device)
        seen = (t[:, None] >= t) & mask[:, None, :]
        return self._added(seen | (t[:, None] == t))[
            :, None
        ]  # padding sees itself: an empty row would give NaN

    def _added(self, seen: Tensor) -> Tensor:
        """Turn a boolean mask into one that is added to the scores."""
        return torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device).masked_fill(
            ~seen, float("-inf")
        )
