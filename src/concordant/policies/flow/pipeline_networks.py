"""Stable Diffusion 3 and Flux as networks of the flow policy: latents and prompts in, velocities and images out."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from concordant.core.errors import ConfigError, DataError
from concordant.policies.flow.pipelines import Loaded

KEPT_TEXTS = 1024
"""Encodings of prompts that are kept; the one used longest ago makes room."""
DECODED_PIXELS = 2**20
"""Pixels that the decoder makes at a time."""


class Frozen:
    """What no training moves: the pipeline around the transformer, and encodings of texts. Copies of a policy share it.

    A text goes by its number: an encoding takes megabytes, and every step of every image of a prompt asks for it.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.pipeline, self.folder, self.device = loaded.pipeline, loaded.folder, loaded.device
        self.numbers: dict[str, int] = {}
        self.texts: list[str] = []
        self.kept: OrderedDict[int, tuple[Tensor, ...]] = OrderedDict()

    def __deepcopy__(self, memo: Any) -> "Frozen":
        return self

    def number(self, text: str) -> int:
        """Return the number of a text, the next one if it is new."""
        if text not in self.numbers:
            self.numbers[text] = len(self.texts)
            self.texts.append(text)
        return self.numbers[text]

    def encodings(
        self, numbers: Sequence[int], make: Callable[[str], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Encodings of texts by number, on the device.

        Those that were made are kept in main memory; texts pass one by one, so that none depends on its neighbours.
        """
        found = {}
        for number in dict.fromkeys(numbers):
            if number not in self.kept:
                with torch.no_grad():
                    self.kept[number] = tuple(part[0].cpu() for part in make(self.texts[number]))
            self.kept.move_to_end(number)
            found[number] = self.kept[number]
        while len(self.kept) > KEPT_TEXTS:
            self.kept.popitem(last=False)
        place = {number: row for row, number in enumerate(found)}
        rows = torch.tensor([place[number] for number in numbers], device=self.device)
        return tuple(torch.stack(part).to(self.device)[rows] for part in zip(*found.values(), strict=True))


class PipelineNetwork(nn.Module, ABC):
    """A pipeline as a network: `forward(x [n d], time [n], condition) -> velocity e - x0 [n d]`.

    `d` is the flattened form in which the transformer takes latents; a condition is the number of a prompt, int64 (n).
    Without gradients the rows pass in parts of `batch_rows`.

    Args:
        loaded: the pipeline.
        size: height and width of images in pixels; None is the pipeline's own.
        guidance: None is the pipeline's default.
        max_sequence_length: tokens that T5 reads of a prompt; None is the pipeline's default.
        batch_rows: rows that pass together where no gradient is needed.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        size: tuple[int, int] | None = None,
        guidance: float | None = None,
        max_sequence_length: int | None = None,
        batch_rows: int = 16,
    ) -> None:
        super().__init__()
        self.transformer, self.frozen = loaded.transformer, Frozen(loaded)
        self.config = loaded.pipeline.transformer.config
        self.factor = int(loaded.pipeline.vae_scale_factor)
        self.shape = (*self._size(size, loaded.pipeline), 3)
        self.grid = (self.shape[0] // self.factor, self.shape[1] // self.factor)
        self.asked = self.default_guidance if guidance is None else float(guidance)
        self.length = self.default_length if max_sequence_length is None else max_sequence_length
        if not 1 <= self.length <= 512:
            raise ConfigError(f"max_sequence_length must lie between 1 and 512, got {self.length}")
        if batch_rows < 1:
            raise ConfigError(f"batch_rows must be at least 1, got {batch_rows}")
        self.batch_rows = batch_rows
        self.training_steps = float(loaded.pipeline.scheduler.config.num_train_timesteps)
        weights = next(loaded.pipeline.transformer.parameters()).dtype
        self.inside, self.mixed = weights, loaded.dtype if loaded.dtype != weights else None
        if self.channels != loaded.pipeline.vae.config.latent_channels:
            raise ConfigError(
                f"the transformer makes {self.channels} latent channels, the decoder reads "
                f"{loaded.pipeline.vae.config.latent_channels}; both must come from the same model"
            )

    def _size(self, size: tuple[int, int] | None, pipeline: Any) -> tuple[int, int]:
        """Check a size against the factors of decoder and patches."""
        own = int(pipeline.default_sample_size) * self.factor
        height, width = (own, own) if size is None else (int(size[0]), int(size[1]))
        step = self.factor * self.patch
        if height < step or width < step or height % step or width % step:
            near = tuple(max(round(side / step), 1) * step for side in (height, width))
            raise ConfigError(
                f"size {height} x {width} does not fit: both sides must be multiples of {step} pixels ({self.factor} "
                f"of the decoder times {self.patch} of a patch); the nearest is {near[0]} x {near[1]}"
            )
        return height, width

    @property
    @abstractmethod
    def default_guidance(self) -> float:
        """Guidance of the pipeline where nothing is asked for."""

    @property
    @abstractmethod
    def default_length(self) -> int:
        """Tokens that the pipeline's T5 reads where nothing is asked for."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Side of a patch in latent pixels."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Latent channels."""

    @property
    @abstractmethod
    def free_guidance(self) -> float:
        """Weight of classifier-free guidance, which the policy applies; 1 is none."""

    @property
    @abstractmethod
    def even(self) -> bool:
        """Whether the pipeline hands equal steps to its scheduler."""

    @property
    def settings(self) -> dict[str, float]:
        """What must be equal when rows are sampled and when they are scored again."""
        return {"max_sequence_length": float(self.length)}

    @property
    def latent_dims(self) -> int:
        """Number of latent dimensions d."""
        return self.channels * self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (self.grid[0] // self.patch) * (self.grid[1] // self.patch)

    # ---- prompts -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _text(self, text: str) -> tuple[Tensor, ...]:
        """Encode one text: tokens (1, l, c), pooled (1, c)."""

    def encode(self, prompts: Sequence[Any]) -> Tensor:
        """Return conditions of prompts, int64 (u)."""
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise DataError(
                    f"a prompt of an image must be text, got {type(prompt).__name__}: {str(prompt)[:80]!r}; write it "
                    "as one string (chat messages are for language models)"
                )
        return torch.tensor([self.frozen.number(prompt) for prompt in prompts], dtype=torch.int64)

    @property
    def null(self) -> Tensor:
        """Condition of the empty prompt."""
        return self.encode([""])[0]

    # ---- latents -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _velocity(self, x: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        """Ask the transformer."""

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return velocities, float32 (n, d)."""
        if x.dim() != 2 or x.shape[1] != self.latent_dims:
            raise DataError(
                f"latents of {self.shape[0]} x {self.shape[1]} images have shape (n, {self.latent_dims}), got "
                f"{tuple(x.shape)}; rows must be scored at the size at which they were sampled"
            )
        if torch.is_grad_enabled() or len(x) <= self.batch_rows:
            return self._part(x, time, condition)
        cut = (values.split(self.batch_rows) for values in (x, time, condition))
        return torch.cat([self._part(*part) for part in zip(*cut, strict=True)])

    def _part(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        tokens, pooled = self.frozen.encodings(condition.tolist(), self._text)
        with torch.autocast(x.device.type, self.mixed, enabled=self.mixed is not None):
            return self._velocity(x.to(self.inside), time, tokens, pooled).float().reshape(len(x), -1)

    @abstractmethod
    def unpack(self, x: Tensor) -> Tensor:
        """Latents (n, d) as the decoder takes them, (n, channels, height, width)."""

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Return images of latents (n, d), float32 (n, height, width, 3) in [0, 1]; NaN if a latent is not finite."""
        vae = self.frozen.pipeline.vae
        finite = x.isfinite().all(1)
        latents = self.unpack(torch.where(finite[:, None], x, 0.0).to(vae.device, vae.dtype))
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        rows = max(DECODED_PIXELS // (self.shape[0] * self.shape[1]), 1)
        pixels = torch.cat([vae.decode(part, return_dict=False)[0] for part in latents.split(rows)])
        images = (pixels.float() / 2.0 + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1)
        return torch.where(finite[:, None, None, None].to(images.device), images, torch.nan)


@final
class SD3Network(PipelineNetwork):
    """Stable Diffusion 3 and 3.5: latents (channels, height, width); guidance by the empty prompt."""

    default_guidance, default_length, even = 7.0, 256, False

    def __init__(self, loaded: Loaded, **options: Any) -> None:
        super().__init__(loaded, **options)
        limit = int(self.config.pos_embed_max_size) * self.factor * self.patch
        if max(self.shape[:2]) > limit:
            raise ConfigError(
                f"size {self.shape[0]} x {self.shape[1]} is too large: this transformer has positions for sides of up "
                f"to {limit} pixels"
            )

    @property
    def patch(self) -> int:
        """Side of a patch in latent pixels."""
        return int(self.config.patch_size)

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.config.in_channels)

    @property
    def free_guidance(self) -> float:
        """All guidance is classifier-free."""
        return self.asked

    def _text(self, text: str) -> tuple[Tensor, ...]:
        tokens, _, pooled, _ = self.frozen.pipeline.encode_prompt(
            text, None, None, device=self.frozen.device, do_classifier_free_guidance=False,
            max_sequence_length=self.length,
        )  # fmt: skip
        return tokens, pooled

    def _velocity(self, x: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        return self.transformer(
            hidden_states=self.unpack(x), timestep=time * self.training_steps,
            encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False,
        )[0]  # fmt: skip

    def unpack(self, x: Tensor) -> Tensor:
        """Latents (n, d) as (n, channels, height, width)."""
        return x.reshape(len(x), self.channels, *self.grid)


@final
class FluxNetwork(PipelineNetwork):
    """Flux: latents are packed, (patches, 4 channels). A distilled transformer is told the guidance."""

    default_length, even, patch = 512, True, 2

    @property
    def default_guidance(self) -> float:
        """What a distilled transformer is told; else none."""
        return 3.5 if self.told else 1.0

    @property
    def channels(self) -> int:
        """Latent channels, four of which make one of a packed patch."""
        return int(self.config.in_channels) // 4

    @property
    def told(self) -> bool:
        """Whether the transformer takes the guidance as an input."""
        return bool(self.config.guidance_embeds)

    @property
    def free_guidance(self) -> float:
        """None where the transformer is told; else what was asked for (`true_cfg_scale` of the pipeline)."""
        return 1.0 if self.told else self.asked

    @property
    def settings(self) -> dict[str, float]:
        """Length of texts and guidance that the transformer is told (0: none)."""
        return {**super().settings, "embedded_guidance": self.asked if self.told else 0.0}

    def _text(self, text: str) -> tuple[Tensor, ...]:
        tokens, pooled, _ = self.frozen.pipeline.encode_prompt(
            text, None, device=self.frozen.device, max_sequence_length=self.length
        )
        return tokens, pooled

    def _velocity(self, x: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        height, width = self.grid[0] // 2, self.grid[1] // 2
        place = torch.zeros(height, width, 3, device=x.device)
        place[..., 1] = torch.arange(height, device=x.device)[:, None]
        place[..., 2] = torch.arange(width, device=x.device)
        return self.transformer(
            hidden_states=x.reshape(len(x), height * width, -1),
            timestep=time * (self.training_steps / 1000.0),  # the transformer multiplies by 1000 itself
            guidance=torch.full((len(x),), self.asked, device=x.device) if self.told else None,
            encoder_hidden_states=tokens, pooled_projections=pooled,
            txt_ids=place.new_zeros(tokens.shape[1], 3), img_ids=place.flatten(0, 1), return_dict=False,
        )[0]  # fmt: skip

    def unpack(self, x: Tensor) -> Tensor:
        """Packed latents (n, d) as (n, channels, height, width)."""
        height, width = self.grid
        packed = x.reshape(len(x), height // 2, width // 2, self.channels, 2, 2)
        return packed.permute(0, 3, 1, 4, 2, 5).reshape(len(x), self.channels, height, width)
