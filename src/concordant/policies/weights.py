"""The weights of a policy: what training moves, frozen copies of it, moving averages, states."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from concordant.core.errors import CheckpointError, ConfigError, nearest


def trained_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the weights that require a gradient."""
    return tuple(name for name, p in model.named_parameters() if p.requires_grad)


class ModelPolicy(ABC):
    """A policy around one torch module, `model`; `names` are the weights that training moves."""

    model: Any
    names: tuple[str, ...]
    """Names of the weights that training moves; the state is made of these."""

    @abstractmethod
    def around(self, model: Any) -> Self:
        """Return a policy of the same settings around another model."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(self.model.parameters()).device)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Weights that require a gradient; none in a snapshot."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def _moved(self) -> dict[str, torch.nn.Parameter]:
        weights = dict(self.model.named_parameters())
        return {name: weights[name] for name in self.names}

    def snapshot(self) -> Self:
        """Return a frozen copy of what training moves; weights that stay frozen (the base under LoRA) are shared."""
        moved = set(self.names)
        fixed = [p for name, p in self.model.named_parameters() if name not in moved]
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in (*fixed, *self.model.buffers())})
        copied = self.around(model)
        copied.names = self.names
        for parameter in copied._moved().values():
            parameter.requires_grad_(False)
            parameter.grad = None
        return copied

    def ema_(self, source: "ModelPolicy", decay: float) -> None:
        """Move these weights towards those of `source` in place: `theta <- decay * theta + (1 - decay) * source`.

        `decay=0` copies. With a constant source the gap shrinks by `decay` each time.
        """
        if not 0 <= decay <= 1:
            raise ConfigError(f"decay must lie in [0, 1], got {decay}")
        own, other = self._moved(), source._moved()
        if own.keys() != other.keys():
            raise ConfigError(
                "ema_ needs two policies that train the same weights; take one as a snapshot of the other"
            )
        with torch.no_grad():
            for name, weight in own.items():
                if decay not in (0, 1) and weight.dtype != torch.float32:
                    raise ConfigError(
                        f"a moving average in {weight.dtype} loses small steps; load the policy in float32"
                    )
                weight.lerp_(other[name], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights that training moves, by name (not copied)."""
        return {name: weight.detach() for name, weight in self._moved().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; unknown, missing or misshapen weights are refused."""
        own = self._moved()
        for name in (*state, *own):
            if name not in own:
                raise CheckpointError(f"the policy has no trained weight {name!r}; {nearest(name, own)}")
            if name not in state:
                raise CheckpointError(
                    f"the state lacks the weight {name!r}; was it saved with other LoRA options?"
                )
            if state[name].shape != own[name].shape:
                raise CheckpointError(
                    f"weight {name!r} has shape {tuple(own[name].shape)}, the state {tuple(state[name].shape)}"
                )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(state[name])
