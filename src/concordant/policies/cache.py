"""Key-value caches of a decoding loop whose set of live prefixes branches and shrinks."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin


class _Stack:
    """The keys, or the values, of all layers: parts of one tensor, so that a row of all layers is copied in one call.

    Layers whose heads differ in number or size get a tensor for each shape.
    """

    def __init__(self, layers: int, slots: int, room: int) -> None:
        self.layers, self.slots, self.room = layers, slots, room
        self.tensors: dict[tuple[int, ...], tuple[Tensor, int]] = {}

    def cut(self, states: Tensor) -> Tensor:
        """Return an unused buffer (slots, heads, q + room, d) for the first states (u, heads, q, d) of a layer."""
        _, heads, read, width = states.shape
        shape = (self.slots, heads, read + self.room, width)
        tensor, used = self.tensors.get(shape) or (states.new_empty(self.layers, *shape), 0)
        self.tensors[shape] = tensor, used + 1
        return tensor[used]

    def copy(self, source: list[int], target: list[int], length: int) -> None:
        """Copy the first `length` positions of some slots to others."""
        for tensor, used in self.tensors.values():
            states = tensor[:used, :, :, :length]
            for a, b in zip(
                source, target, strict=True
            ):  # on a CPU, indexing by tensors takes three times as long
                states[:, b] = states[:, a]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer in a buffer of `slots` rows; the first rows are in use."""

    is_sliding = False
    is_compileable = False

    def __init__(self, keys: _Stack, values: _Stack) -> None:
        super().__init__()
        self.stacks, self.length = (keys, values), 0
        self.buffers: tuple[Tensor, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers on the first call."""
        self.buffers = self.stacks[0].cut(key_states), self.stacks[1].cut(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new positions of the rows in use; return all their positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, end = key_states.shape[0], self.length + key_states.shape[2]
        keys, values = self.buffers
        keys[:rows, :, self.length : end] = key_states
        values[:rows, :, self.length : end] = value_states
        self.length = end
        return keys[:rows, :, :end], values[:rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that a mask for the next call has."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions written so far."""
        return self.length

    def get_max_cache_shape(self) -> int:
        """No limit that a model should know of."""
        return -1


class Slots(Cache):
    """A cache that writes in place: a step copies one position a row, a branch one row, and an end at most one."""

    def __init__(self, layers: int, slots: int, room: int) -> None:
        self.stacks = _Stack(layers, slots, room), _Stack(layers, slots, room)
        self.slots = [_SlotLayer(*self.stacks) for _ in range(layers)]
        super().__init__(layers=list(self.slots))

    def branch(self, parents: Tensor) -> Tensor:
        """Let row i continue row `parents[i]`; parents are sorted and may repeat. Return the slot of each new row.

        The first child of a row stays in its slot if that is below `len(parents)`; the others fill the gaps.
        """
        count = len(parents)
        stays = parents < count
        stays[1:] &= parents[1:] != parents[:-1]
        free = torch.ones(count, dtype=torch.bool, device=parents.device)
        free[parents[stays]] = False
        target = free.nonzero()[:, 0]
        slot = parents.clone()
        slot[~stays] = target
        if len(target):
            source, length = parents[~stays].tolist(), self.slots[0].length
            for stack in self.stacks:
                stack.copy(source, target.tolist(), length)
        return slot


class Selected(DynamicCache):
    """The cache of transformers itself, for models with sliding windows or other kinds of layers."""

    def branch(self, parents: Tensor) -> Tensor:
        """Let row i continue row `parents[i]`. Return the slot of each new row: i."""
        self.batch_select_indices(parents)
        return torch.arange(len(parents), device=parents.device)
