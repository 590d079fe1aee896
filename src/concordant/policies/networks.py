"""Small networks that predict velocities (flows) or noise (DDIM) of images, and how they are kept on disk.

All follow one protocol: `network(x [n, d], time [n], condition [n, c]) -> out [n, d]`, `encode` for prompts, `null` for
"no prompt", `shape`, `decode` for images.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from concordant.core.errors import ConfigError, DataError, nearest

FREQUENCIES = 32
"""Sines and cosines that a time is turned into."""


class Reader(Protocol):
    """Turns prompts into codes, the numbers that a network is conditioned on."""

    @property
    def size(self) -> int:
        """Length c of a code; the code of "no prompt" is all zeros."""
        ...

    def encode(self, prompts: Sequence[Any]) -> Tensor:
        """Return codes, float32 (u, c); an unknown prompt raises `DataError`."""
        ...


@dataclass(frozen=True)
class MLPConfig:
    """Size of a `ResidualMLP`."""

    shape: tuple[int, int, int] = (8, 8, 1)
    """Height, width and channels of an image."""
    code: int = 10
    """Length of a code."""
    width: int = 256
    blocks: int = 3
    bound: float = 1.0
    """Latents from -bound to bound are what `decode` shows."""


@dataclass(frozen=True)
class DiTConfig:
    """Size of a `DiT`."""

    shape: tuple[int, int, int] = (8, 8, 1)
    code: int = 10
    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 384
    """Width inside the feed-forward parts."""
    patch: int = 2
    """Side of a patch; one patch is one token."""

    def __post_init__(self) -> None:
        height, width, _ = self.shape
        if height % self.patch or width % self.patch:
            raise ConfigError(f"patches of {self.patch} do not tile images of {height} x {width}")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} cannot be split into {self.heads} heads")


class ImageNetwork(nn.Module):
    """What all networks share: prompts in, images out."""

    null: Tensor
    """Code of "no prompt", (c)."""

    def __init__(self, shape: tuple[int, int, int], code: int, reader: Reader, bound: float = 1.0) -> None:
        super().__init__()
        if reader.size != code:
            raise ConfigError(
                f"the network is conditioned on {code} numbers, the reader of prompts gives {reader.size}; "
                "load the network with the reader that it was trained with"
            )
        self.shape = tuple(shape)
        self.size = math.prod(shape)
        self.reader = reader
        self.bound = bound
        self.alpha_bar: tuple[float, ...] = ()
        """Cumulative signal levels of a network that predicts noise, one a training timestep; empty for flows."""
        self.register_buffer("null", torch.zeros(code), persistent=False)

    def encode(self, prompts: Sequence[Any]) -> Tensor:
        """Return codes of prompts, float32 (u, c), on the device of the network."""
        return self.reader.encode(prompts).to(self.null)

    def decode(self, x: Tensor) -> Tensor:
        """Return images in [0, 1] of latents in [-bound, bound], which is [-1, 1] for pictures.

        Args:
            x: latents, (n, d).

        Returns:
            float32 (n, height, width, channels). Latents outside are clamped; a value that is not finite is NaN.
        """
        x = x.detach().float()
        pixels = torch.where(x.isfinite(), (x / self.bound + 1.0) / 2.0, torch.nan).clamp(0.0, 1.0)
        return pixels.reshape(-1, *self.shape)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.size:
            raise DataError(
                f"x must have shape (n, {self.size}), one flattened image of {self.shape} a row; got {tuple(x.shape)}"
            )


class TimeFeatures(nn.Module):
    """Sines and cosines of a time in [0, 1] at frequencies from 1 to 200, (n) -> (n, 64)."""

    frequency: Tensor

    def __init__(self) -> None:
        super().__init__()
        frequency = torch.logspace(0.0, math.log10(200.0), FREQUENCIES)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """Return the features."""
        angle = time[:, None] * self.frequency
        return torch.cat([angle.cos(), angle.sin()], 1)


class Block(nn.Module):
    """One residual block: `h + W2 silu(W1 h + c)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Parameter(torch.randn(width, width) / math.sqrt(width))
        self.leave = nn.Parameter(torch.randn(width, width) * (0.5 / math.sqrt(width)))

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """Apply the block; both sums are fused into the products."""
        inner = functional.silu(torch.addmm(context, h, self.enter))
        return torch.addmm(h, inner, self.leave)


class ResidualMLP(ImageNetwork):
    """Residual perceptron on flattened images; the default size has .44 million weights."""

    def __init__(self, config: MLPConfig, reader: Reader) -> None:
        super().__init__(config.shape, config.code, reader, config.bound)
        self.config = config
        self.times = TimeFeatures()
        self.pixels = nn.Linear(self.size, config.width)
        self.context = nn.Linear(2 * FREQUENCIES + config.code, config.width)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.blocks))
        self.out = nn.Linear(config.width, self.size)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction, (n, d)."""
        self._check(x)
        context = self.context(torch.cat([self.times(time), condition], 1))
        h = self.pixels(x) + context
        for block in self.blocks:
            h = block(h, context)
        return self.out(functional.silu(h))


class Layer(nn.Module):
    """One transformer layer whose norms are scaled, shifted and gated by the context (adaLN-zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.modulate = nn.Linear(width, 6 * width)
        self.mix = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.enter = nn.Linear(width, config.hidden)
        self.leave = nn.Linear(config.hidden, width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """Apply the layer to tokens (n, t, w) with context (n, w)."""
        n, tokens, width = h.shape
        parts = self.modulate(context)[:, None].chunk(6, 2)
        query, key, value = (
            self.mix(_norm(h, parts[0], parts[1])).view(n, tokens, 3, self.heads, -1).unbind(2)
        )
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        h = torch.addcmul(h, parts[2], self.project(seen.transpose(1, 2).reshape(n, tokens, width)))
        inner = functional.gelu(self.enter(_norm(h, parts[3], parts[4])), approximate="tanh")
        return torch.addcmul(h, parts[5], self.leave(inner))


def _norm(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, functional.layer_norm(h, h.shape[-1:]), 1.0 + scale)


class DiT(ImageNetwork):
    """Diffusion transformer on patches (Peebles and Xie, 2023); the default size has about a million weights."""

    def __init__(self, config: DiTConfig, reader: Reader) -> None:
        super().__init__(config.shape, config.code, reader)
        self.config = config
        height, width, channels = config.shape
        patch = channels * config.patch**2
        self.times = TimeFeatures()
        self.context = nn.Sequential(
            nn.Linear(2 * FREQUENCIES + config.code, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
        )
        self.enter = nn.Linear(patch, config.width)
        self.place = nn.Parameter(0.1 * torch.randn(height * width // config.patch**2, config.width))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.modulate = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, patch)
        for linear in (self.modulate, self.out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction, (n, d)."""
        self._check(x)
        (height, width, channels), side = self.config.shape, self.config.patch
        grid = (len(x), height // side, side, width // side, side, channels)
        context = self.context(torch.cat([self.times(time), condition], 1))
        patches = x.view(grid).transpose(2, 3).reshape(len(x), len(self.place), -1)
        h = self.enter(patches) + self.place
        for layer in self.layers:
            h = layer(h, context)
        shift, scale = self.modulate(context)[:, None].chunk(2, 2)
        patches = self.out(_norm(h, shift, scale))
        spread = patches.view(len(x), height // side, width // side, side, side, channels)
        return spread.transpose(2, 3).reshape(len(x), self.size)


NETWORKS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "ResidualMLP": (ResidualMLP, MLPConfig),
    "DiT": (DiT, DiTConfig),
}
"""Networks that `load_network` can make, with their configurations."""


def save_network(network: Any, folder: Path, name: str, **facts: Any) -> None:
    """Write the weights as `<name>.safetensors`, and sizes, hash and facts into `config.json` of the folder.

    Weights are rounded to float16. The hash is of the weights' file, see `check_files`.
    """
    options = {**asdict(network.config), "shape": list(network.shape)}
    facts = {"network": type(network).__name__, "options": options, **facts}
    save_weights(network, folder, name, **facts)


def save_weights(module: nn.Module, folder: Path, name: str, **facts: Any) -> None:
    """Write the weights of any module as float16, and its hash and facts into `config.json` of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.half().contiguous() for key, value in module.state_dict().items()}
    file = folder / f"{name}.safetensors"
    save_file(state, file)
    index = folder / "config.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    known[name] = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **facts}
    index.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def load_weights(module: nn.Module, folder: Path, name: str) -> nn.Module:
    """Fill a module with the float32 form of saved weights, and freeze nothing: it is in evaluation mode."""
    state = {key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()}
    module.load_state_dict(state)
    return module.eval()


def read_facts(folder: Path, name: str) -> dict[str, Any]:
    """Return what `config.json` of a folder says about one of its files of weights."""
    index = folder / "config.json"
    known: dict[str, dict[str, Any]] = json.loads(index.read_text()) if index.is_file() else {}
    if name not in known:
        raise ConfigError(f"{folder} holds no weights named {name!r}; {nearest(name, known)}")
    return known[name]


def load_network(folder: Path, name: str, reader: Reader) -> Any:
    """Load a network that `save_network` wrote, float32, in evaluation mode.

    Args:
        folder: that holds `config.json`.
        name: of the network in it.
        reader: of its prompts.
    """
    facts = read_facts(folder, name)
    kind = facts.get("network", "")
    if kind not in NETWORKS:
        raise ConfigError(f"{folder}: {name!r} is a {kind or 'module'}; {nearest(kind, NETWORKS)}")
    made, config = NETWORKS[kind]
    options = {**facts["options"], "shape": tuple(facts["options"]["shape"])}
    network: Any = load_weights(made(config(**options), reader), folder, name)
    if "betas" in facts:
        network.alpha_bar = alpha_bars(**facts["betas"])
    return network


def alpha_bars(first: float, last: float, timesteps: int) -> tuple[float, ...]:
    """Cumulative signal levels of noise that grows linearly: `prod_{i<=t} (1 - beta_i)`.

    Args:
        first: beta of the first timestep.
        last: beta of the last.
        timesteps: their number.

    >>> [round(level, 3) for level in alpha_bars(0.1, 0.5, 3)]
    [0.9, 0.63, 0.315]
    """
    betas = torch.linspace(first, last, timesteps, dtype=torch.float64)
    return tuple((1.0 - betas).cumprod(0).tolist())


def check_files(folder: Path) -> list[str]:
    """Compare every file of weights with the hash in `config.json`; an empty list means all are as they were made."""
    index = folder / "config.json"
    if not index.is_file():
        return [f"{index} is missing"]
    known, found = json.loads(index.read_text()), list[str]()
    for name, facts in known.items():
        file = folder / f"{name}.safetensors"
        if not file.is_file():
            found.append(f"{file.name} is missing")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != facts["sha256"]:
            found.append(f"{file.name} is not the file that config.json describes")
    return found
