"""Load a causal language model and its tokenizer, with errors that say what to do."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from concordant.core.errors import ConfigError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters through peft; the base stays frozen.

    There is no dropout: the ratio of a fresh row must be 1, so sampling and scoring must be the same function.
    """

    rank: int = 16
    """Rank of the update of each matrix."""
    alpha: float = 16.0
    """Scale: the update is multiplied by `alpha / rank`."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the modules that get adapters, or peft's "all-linear" (all but the output layer)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(
                f"LoRA needs a rank of at least 1, got {self.rank}; to train all weights pass no LoraOptions"
            )


def find_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name."""
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; {nearest(str(name), DTYPES)} (all: {', '.join(DTYPES)})")
    return DTYPES[name]


def find_device(name: str) -> torch.device:
    """Return a torch device that this machine has."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            found.append("mps")
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({reason}); this machine has: {', '.join(found)}"
        ) from None
    return device


def _check_folder(source: str) -> None:
    """Refuse a path that holds no model; anything that may be a hub id passes."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            inside = sorted(entry.name for entry in folder.iterdir())[:8]
            raise ConfigError(
                f"{folder} holds no model: config.json is missing (found: {', '.join(inside) or 'nothing'}); "
                "give the folder that save_pretrained wrote"
            )
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ConfigError(f"no model folder {folder}; give an existing folder or a hub id such as owner/name")


def load_pretrained(source: str | Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder or hub id: safetensors only, no remote code, in evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = str(source)
    _check_folder(source)
    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(
            f"cannot load a causal language model with its tokenizer from {source!r}: {reason} -- give a folder or "
            "hub id with config.json, safetensors weights and tokenizer files (pickled weights and remote code are "
            "refused; offline, a hub model must be in the local cache)"
        ) from None
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.to(device).eval(), tokenizer


def add_lora(model: Any, options: LoraOptions) -> Any:
    """Freeze the model and wrap it with adapters whose first effect is zero."""
    from peft import LoraConfig, TaskType, get_peft_model

    targets = options.targets if isinstance(options.targets, str) else list(options.targets)
    settings: dict[str, Any] = {"r": options.rank, "lora_alpha": options.alpha, "target_modules": targets}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # adapters begin alike in all runs, whatever was drawn before
            config = LoraConfig(lora_dropout=0.0, task_type=TaskType.CAUSAL_LM, **settings)
            return get_peft_model(model, config).eval()
    except ValueError as error:
        raise ConfigError(f"LoRA targets {options.targets!r} do not fit this model: {error}") from None
