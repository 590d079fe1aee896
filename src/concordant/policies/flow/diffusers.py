"""Pipelines of diffusers as policies: Stable Diffusion 3 and Flux from a local folder, trained by any flow recipe.

The pipeline's own classes do the work: its text encoders, transformer, scheduler and decoder. Sampled without noise, a
policy gives the images that the pipeline gives. diffusers is imported when a pipeline is loaded, not before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, final

import numpy as np
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.policies.flow.pipeline_networks import FluxNetwork, PipelineNetwork, SD3Network
from concordant.policies.flow.pipelines import import_diffusers, load_pipeline, save_trained
from concordant.policies.flow.policy import FlowPolicy
from concordant.policies.flow.schedules import FlowPlan, FlowSchedule, Steps, flow_steps
from concordant.policies.load import LoraOptions

SPACINGS = ("", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True)
class PipelineSchedule:
    """Noise levels as the pipeline itself would take them, from its own scheduler."""

    scheduler: Mapping[str, Any] = field(repr=False)
    """Configuration of a `FlowMatchEulerDiscreteScheduler`."""
    mu: float | None = None
    """Shift that depends on the size of the image; None where the scheduler's shift is fixed."""
    even: bool = False
    """The pipeline hands equal steps from 1 to 1/T to the scheduler (Flux), or leaves them to it (SD3)."""

    @classmethod
    def of(cls, network: PipelineNetwork) -> Self:
        """Return the schedule that a pipeline takes at the size of its network."""
        import_diffusers()
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config, mu = dict(network.frozen.pipeline.scheduler.config), None
        if config.get("use_dynamic_shifting"):
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            mu = float(calculate_shift(network.tokens, *(config[name] for name in names)))
        return cls(config, mu, network.even)

    def __post_init__(self) -> None:
        for name in ("invert_sigmas", "stochastic_sampling"):
            if self.scheduler.get(name):
                raise ConfigError(
                    f"a scheduler with {name} is not supported; the sampler's plan says what noise is added"
                )

    @property
    def shift(self) -> float:
        """The k of `k s / (1 + (k-1) s)`; where it depends on the size `exp(mu)`, or mu if the shift is linear."""
        if self.mu is None:
            return float(self.scheduler["shift"])
        return float(self.mu if self.scheduler.get("time_shift_type") == "linear" else np.exp(self.mu))

    @property
    def settings(self) -> dict[str, float]:
        """Shift, end of the stretched schedule (0: none), spacing (0 even, 1 karras, 2 exponential, 3 beta)."""
        chosen = [i for i, name in enumerate(SPACINGS) if name and self.scheduler.get(name)]
        return {
            "shift": self.shift,
            "shift_terminal": float(self.scheduler.get("shift_terminal") or 0.0),
            "sigma_spacing": float(chosen[0] if chosen else 0),
        }

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels, float64, shape (steps+1)."""
        made = import_diffusers().FlowMatchEulerDiscreteScheduler.from_config(dict(self.scheduler))
        if self.even:
            made.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), mu=self.mu)
        else:
            made.set_timesteps(steps, mu=self.mu)
        return made.sigmas.double()

    def steps(self, plan: FlowPlan) -> Steps:
        """Return the steps of a plan; the noise of kind `flow` uses the second level where sigma is 1."""
        return flow_steps(self.sigmas(plan.steps), plan)

    def noised(self, x0: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State `(1-s) x0 + s e`, its velocity `e - x0`, and s."""
        return FlowSchedule().noised(x0, time, noise)

    def direct(self, sigma: Tensor, steps: int) -> Steps:
        """Euler steps of equal length from each sigma to 0."""
        return FlowSchedule().direct(sigma, steps)


NETWORKS: Mapping[str, type[Any]] = {"StableDiffusion3Pipeline": SD3Network, "FluxPipeline": FluxNetwork}


@final
class DiffusersFlowPolicy(FlowPolicy):
    """A diffusers pipeline that samples tables of images, scores their steps again, and is trained."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        lora: LoraOptions | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        max_sequence_length: int | None = None,
        eval_steps: int = 40,
        reduce: Literal["mean", "sum"] = "mean",
        recompute: int = 0,
        batch_rows: int = 16,
    ) -> Self:
        """Load a pipeline of Stable Diffusion 3 or Flux, or what `save_pretrained` wrote.

        Args:
            folder: local; safetensors only, and no code of its own is run.
            device: torch device name.
            dtype: of the networks ("float32", "bfloat16"). Trained weights, the decoder of images and all
                arithmetic outside the networks are float32.
            lora: train low-rank adapters on the projections of attention; None trains the whole transformer.
            guidance: SD3: classifier-free guidance (None: 7; 1 is none and takes half the time). Flux: what the
                transformer is told (None: 3.5); one that is told nothing takes classifier-free guidance (None: 1).
            size: height and width of images in pixels; None is the pipeline's own.
            max_sequence_length: tokens that T5 reads of a prompt; None is the pipeline's own (SD3 256, Flux 512).
            eval_steps: ODE steps of an evaluation.
            reduce: log-probabilities are the mean or the sum over latent dimensions.
            recompute: network evaluations whose activations are kept at a time; 0 keeps all.
            batch_rows: evaluations that pass together where no gradient is needed.
        """
        loaded = load_pipeline(folder, device, dtype, lora)
        network = NETWORKS[type(loaded.pipeline).__name__](
            loaded,
            size=size,
            guidance=guidance,
            max_sequence_length=max_sequence_length,
            batch_rows=batch_rows,
        )
        return cls(
            network, schedule=PipelineSchedule.of(network), guidance=network.free_guidance, reduce=reduce,
            eval_steps=eval_steps, recompute=recompute,
        )  # fmt: skip

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what was trained, the adapters (peft) or the transformer (diffusers), with a note of the pipeline."""
        save_trained(self.model.transformer, self.model.frozen.folder, folder)
