"""Folders of diffusers pipelines: what they must hold, how they are loaded, and how trained weights are kept.

Nothing here imports diffusers before a pipeline is loaded.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from concordant.core.errors import ConfigError, nearest
from concordant.policies.load import LoraOptions, find_device, find_dtype

INDEX = "model_index.json"
BASE = "base_pipeline.json"
"""Beside trained weights: which pipeline they belong to."""
ADAPTER = "adapter_config.json"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
ATTENTION = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
)  # fmt: skip
"""Projections of joint attention, as both families name them."""


@dataclass(frozen=True)
class Family:
    """What a supported pipeline is made of."""

    classes: Mapping[str, str]
    """Class of each component that is a network or the scheduler."""
    tokenizers: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Components that may be left out, by [null, null] in the index."""


CLIP = "CLIPTextModelWithProjection"
FAMILIES: Mapping[str, Family] = {
    "StableDiffusion3Pipeline": Family(
        {
            "transformer": "SD3Transformer2DModel", "scheduler": SCHEDULER, "vae": "AutoencoderKL",
            "text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": "T5EncoderModel",
        },
        ("tokenizer", "tokenizer_2", "tokenizer_3"),
        ("text_encoder_3", "tokenizer_3"),
    ),
    "FluxPipeline": Family(
        {
            "transformer": "FluxTransformer2DModel", "scheduler": SCHEDULER, "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel",
        },
        ("tokenizer", "tokenizer_2"),
    ),
}  # fmt: skip


def is_pipeline(folder: str | Path) -> bool:
    """Tell whether a folder holds a diffusers pipeline, or weights that were trained on one."""
    folder = Path(folder).expanduser()
    return (folder / INDEX).is_file() or (folder / BASE).is_file()


@dataclass(frozen=True)
class Loaded:
    """A pipeline in memory. `transformer` is what is trained: the pipeline's own, or that with adapters around it."""

    folder: Path
    pipeline: Any
    transformer: Any
    dtype: torch.dtype
    """Of the arithmetic inside the networks."""
    device: torch.device


def load_pipeline(folder: str | Path, device: str, dtype: str, lora: LoraOptions | None) -> Loaded:
    """Load a pipeline from a folder: safetensors only, nothing from a hub, no code that the folder brings.

    Args:
        folder: as diffusers writes it, or what `save_trained` wrote.
        device: torch device name.
        dtype: of all that stays frozen but the decoder of images, which is float32, as are weights that are trained.
        lora: train adapters; None trains the whole transformer, or the adapters that the folder holds.
    """
    folder = Path(folder).expanduser()
    base = find_base(folder)
    trained = folder if base != folder else None
    adapted = trained is not None and (trained / ADAPTER).is_file()
    if adapted and lora is not None:
        raise ConfigError(f"{folder} holds trained adapters already; leave lora out to go on training them")
    whole = lora is None and not adapted
    to, kind = find_device(device), find_dtype(dtype)
    if kind == torch.float16:
        raise ConfigError(
            "a pipeline does not train in float16, whose gradients underflow; take bfloat16 or float32"
        )
    pipeline = _read(base, kind, whole, None if adapted else trained)
    for name in FAMILIES[type(pipeline).__name__].classes:
        part = getattr(pipeline, name)
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval().to(to)
    transformer = pipeline.transformer.requires_grad_(whole)
    if lora is not None:
        transformer = add_lora(transformer, lora)
    if adapted:
        transformer = _load_lora(transformer, folder)
    return Loaded(base, pipeline, transformer, kind, to)


def find_base(folder: Path) -> Path:
    """Return the folder of the pipeline that a folder is, or was trained on."""
    if not folder.is_dir():
        raise ConfigError(
            f"no folder {folder}; give a pipeline on disk (a hub model must be downloaded first, "
            f"e.g. by `hf download OWNER/NAME --local-dir {folder.name or 'FOLDER'}`)"
        )
    if (folder / INDEX).is_file():
        return folder
    if not (folder / BASE).is_file():
        inside = sorted(entry.name for entry in folder.iterdir())[:8]
        raise ConfigError(
            f"{folder} holds no pipeline: {INDEX} is missing (found: {', '.join(inside) or 'nothing'}); "
            "give the folder that a diffusers pipeline was saved to"
        )
    base = Path(str(_json(folder / BASE).get("folder")))
    if not (base / INDEX).is_file():
        raise ConfigError(
            f"{folder} was trained on the pipeline {base}, which is not there; bring it back, or name its new place in "
            f"{folder / BASE}"
        )
    return base


def _read(base: Path, dtype: torch.dtype, whole: bool, trained: Path | None) -> Any:
    """Check and load a pipeline; with a transformer that was trained as a whole in place of its own."""
    name = check_folder(base)
    diffusers = import_diffusers()
    index = _json(base / INDEX)
    given: dict[str, Any] = {part: None for part in FAMILIES[name].optional if not _listed(index, part)}
    weights = torch.float32 if whole else dtype
    options = {"use_safetensors": True, "local_files_only": True}
    with _quiet(diffusers):
        try:
            if trained is not None:
                kind = getattr(diffusers, FAMILIES[name].classes["transformer"])
                given["transformer"] = kind.from_pretrained(trained, dtype=weights, **options)
            dtypes = {"default": dtype, "transformer": weights, "vae": torch.float32}
            return getattr(diffusers, name).from_pretrained(base, dtype=dtypes, **options, **given)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ConfigError(f"cannot load the {name} in {base}: {reason}") from None


def check_folder(folder: Path) -> str:
    """Refuse a pipeline that is not supported or not complete; return the name of its class."""
    index = _json(folder / INDEX)
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise ConfigError(
            f"{folder} holds a {name}; supported are {' and '.join(FAMILIES)} ({nearest(name, FAMILIES)}). Other "
            "models fit FlowPolicy through a network of your own, see docs/generators.md"
        )
    family = FAMILIES[name]
    for part in (*family.classes, *family.tokenizers):
        found = _listed(index, part)
        if found is None:
            if part not in family.optional:
                raise ConfigError(f"{folder}: {INDEX} names no {part}, which a {name} needs")
            continue
        wanted = family.classes.get(part, found[1])
        if found[1] != wanted:
            raise ConfigError(
                f"{folder}: {part} is a {found[1]}; a {name} is supported with {wanted} only{_hint(part)}"
            )
        if found[0] not in ("diffusers", "transformers"):
            raise ConfigError(f"{folder}: {part} comes with code of its own ({found[0]}), which is never run")
        _check_part(
            folder, part, part in family.optional, weights=part in family.classes and part != "scheduler"
        )
    return name


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}); download or save it again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file} must hold a JSON object, got {type(found).__name__}")
    return found


def _hint(part: str) -> str:
    if part != "scheduler":
        return ""
    return f"; save the pipeline with {SCHEDULER}.from_config(pipeline.scheduler.config)"


def _listed(index: Mapping[str, Any], part: str) -> tuple[str, str] | None:
    """Library and class of a component; None where the index leaves it out."""
    found = index.get(part)
    return None if not found or found[1] is None else (str(found[0]), str(found[1]))


def _check_part(folder: Path, part: str, optional: bool, *, weights: bool) -> None:
    place = folder / part
    if not place.is_dir() or not any(place.iterdir()):
        way = f", or write [null, null] for it in {INDEX}" if optional else ""
        raise ConfigError(f"{folder}: the component {part} is missing (no folder {place}); download it{way}")
    if weights and not any(place.glob("*.safetensors")):
        pickled = sorted(
            file.name for file in (*place.glob("*.bin"), *place.glob("*.pt"), *place.glob("*.ckpt"))
        )
        found = f"only pickled ones ({pickled[0]}), which can run code when loaded" if pickled else "none"
        raise ConfigError(
            f"{folder}: {part} needs weights as safetensors, found {found}; download those, or load the model where "
            "you trust it and call save_pretrained(folder, safe_serialization=True)"
        )


def import_diffusers() -> Any:
    """Return the module diffusers."""
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            f'pipelines need diffusers ({error}); install it with pip install "concordant[flow]"'
        ) from None
    return diffusers


@contextmanager
def _quiet(diffusers: Any) -> Iterator[None]:
    """No progress bars where nobody watches."""
    from transformers.utils import logging

    if sys.stderr.isatty():
        yield
        return
    shown = [log for log in (logging, diffusers.utils.logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def add_lora(transformer: Any, options: LoraOptions) -> Any:
    """Wrap a frozen transformer with float32 adapters whose first effect is zero.

    The targets "all-linear" of the options, their default, stand for the projections of attention here: peft knows that
    word for language models only.
    """
    from peft import LoraConfig, get_peft_model

    named = options.targets if options.targets != "all-linear" else ATTENTION
    targets = named if isinstance(named, str) else list(named)
    settings: dict[str, Any] = {"r": options.rank, "lora_alpha": options.alpha, "target_modules": targets}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # adapters begin alike in all runs, whatever was drawn before
            return get_peft_model(transformer, LoraConfig(lora_dropout=0.0, **settings)).eval()
    except ValueError as error:
        raise ConfigError(f"LoRA targets {options.targets!r} do not fit this transformer: {error}") from None


def _load_lora(transformer: Any, folder: Path) -> Any:
    """Wrap a frozen transformer with trained adapters, to be trained further."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(
            f"{folder} holds {ADAPTER} but no adapter_model.safetensors; pickled adapters are refused"
        )
    try:
        return PeftModel.from_pretrained(transformer, str(folder), is_trainable=True).eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(f"the adapters in {folder} do not fit the transformer: {reason}") from None


def save_trained(transformer: Any, base: Path, folder: str | Path) -> None:
    """Write what was trained, and which pipeline it belongs to.

    Args:
        transformer: with adapters, these are written as peft does; else the transformer is, as diffusers does.
        base: folder of the pipeline.
        folder: where to write.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    diffusers = import_diffusers()
    with _quiet(diffusers):
        if hasattr(transformer, "peft_config"):
            transformer.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            transformer.save_pretrained(str(folder), safe_serialization=True)
    (folder / BASE).write_text(json.dumps({"folder": str(base.resolve())}, indent=1) + "\n")
