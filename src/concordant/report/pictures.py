"""Samples of generators in a report: the grids of a run's evaluations, and single images, as data inside the page."""

import base64
import json
from pathlib import Path
from typing import Any

from concordant.comparison.results import Result, read_json
from concordant.scoring.arrays import MARK, is_array, restore


def first_run(result: Result, folder: Path, arm: str) -> Path:
    """Return the run folder of an arm's first seed."""
    return Path(result.get("folders", {}).get(arm, folder / arm / f"seed{result['seeds'][0]}"))


def grids(result: Result, folder: Path) -> list[dict[str, Any]]:
    """Return for each arm whose first run kept samples: the pictures of its first and of its last evaluation.

    Args:
        result: of a comparison or of a single run.
        folder: the recipe's folder of runs.
    """
    found = []
    for arm in result["arms"]:
        files = _steps(first_run(result, folder, arm) / "samples")
        if files:
            ends = [("before", files[0]), *([("after", files[-1])] if len(files) > 1 else [])]
            pictures = [
                {"when": w, "step": int(file.stem), "data": data_uri(file.read_bytes())} for w, file in ends
            ]
            said = read_json(files[0].with_suffix(".json")) or {}
            about = {"prompts": said.get("prompts", []), "kind": said.get("kind", "grid")}
            found.append({"arm": arm, "pictures": pictures, **about})
    return found


def _steps(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of their steps."""
    return sorted(
        (file for file in folder.glob("*.png") if file.stem.isdigit()), key=lambda file: int(file.stem)
    )


def data_uri(content: bytes) -> str:
    """Return a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def field_image(cell: str | None) -> str | None:
    """Return a stored field as a picture; None if it is no image."""
    from concordant.loops.samples import png, thumbnail

    if not cell or MARK not in cell:
        return None
    try:
        image = restore(json.loads(cell))
    except ValueError:
        return None
    if not is_array(image) or image.ndim not in (2, 3) or image.size < 4:
        return None
    return data_uri(png(thumbnail(image)))
