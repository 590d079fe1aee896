"""Atomic checkpoints: one safetensors file per step, with tensors and JSON, written beside and renamed."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from concordant.core.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})\.safetensors")
_KEPT = 2


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _rename(temporary, path)


def _rename(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a tree of mappings into its tensors and its JSON values, both under dotted keys joined by `/`."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, Mapping) and value:
            inner_tensors, inner_values = flatten(value, path)
            tensors |= inner_tensors
            values |= inner_values
        else:
            values[path] = value
    return tensors, values


def unflatten(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the tree together again."""
    tree: dict[str, Any] = {}
    for path, value in {**tensors, **values}.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _digest(tensors: Mapping[str, Tensor], values: str) -> str:
    digest = hashlib.blake2b(values.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name].contiguous().view(torch.uint8).numpy().tobytes() if tensors[name].numel() else b""
        )
    return digest.hexdigest()


def save(folder: Path, step: int, tree: Mapping[str, Any]) -> Path:
    """Write a checkpoint durably and only then remove all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, values = flatten(tree)
    tensors = {name: tensor.reshape(1) if tensor.dim() == 0 else tensor for name, tensor in tensors.items()}
    scalars = [name for name, tensor in flatten(tree)[0].items() if tensor.dim() == 0]
    text = json.dumps({"values": values, "scalars": scalars}, sort_keys=True)
    path = folder / f"step-{step:08d}.safetensors"
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"json": text, "digest": _digest(tensors, text)})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    _rename(temporary, path)
    for old in checkpoints(folder)[:-_KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return (
        sorted(p for p in folder.glob("step-*.safetensors") if _NAME.fullmatch(p.name))
        if folder.is_dir()
        else []
    )


def load(path: Path) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint; one that is cut short or altered is refused, with what to do."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from None
    text = metadata.get("json", "")
    if metadata.get("digest") != _digest(tensors, text):
        raise _damaged(path, "its content does not match its digest")
    stored = json.loads(text)
    for name in stored["scalars"]:
        tensors[name] = tensors[name].reshape(())
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not named like a checkpoint (step-00000020.safetensors)")
    return int(match[1]), unflatten(tensors, stored["values"])


def _damaged(path: Path, why: str) -> CheckpointError:
    others = [p.name for p in checkpoints(path.parent) if p != path]
    advice = f"delete it to resume from {others[-1]}" if others else "start again with --fresh"
    return CheckpointError(f"checkpoint {path} is damaged ({why}); {advice}")
