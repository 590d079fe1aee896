"""Pictures of what a generator makes while it is trained: one grid for each evaluation, a row for each prompt."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concordant.core.table import Table
from concordant.loops.checkpoint import write_atomically
from concordant.scoring.arrays import is_array

if TYPE_CHECKING:
    import numpy.typing as npt

ROWS, COLUMNS = 10, 8
"""Most prompts, and most samples of each, that a grid shows."""
SMALLEST, LARGEST = 48, 128
"""Pixels of the longer side of a sample in the grid: tiny images are repeated up to that, large ones averaged down."""
_GAP = 2
_NO_VERSION: Any = {"Software": None}
"""Equal samples make equal files, whatever wrote them."""
_PAPER, _EMPTY, _BROKEN = (255, 255, 255), (240, 240, 240), (255, 0, 200)


def save_samples(folder: Path, step: int, table: Table) -> Path | None:
    """Write a grid of samples as `folder/samples/STEP.png`, and its prompts beside it as JSON.

    Evaluations ask the same prompts with the same random numbers, so that a sample stands where it stood before. Pixels
    that are not finite are magenta. Samples of two numbers (points of a plane) are drawn as points.

    Args:
        folder: of the run.
        step: of the evaluation.
        table: its rows, with the field `image` (float32 [H, W, C] in [0, 1], C of 1, 3 or 4).

    Returns:
        The picture; None if rows have no images.
    """
    shown = table.fields.get("image")
    if not shown or not all(map(is_array, shown)):
        return None
    rows = _by_prompt(table, len(shown))
    points = shown[0].size == 2 and "sample" in table
    picture = (
        _points(table, rows) if points else png(grid([[shown[i] for i in row] for row in rows.values()]))
    )
    path = folder / "samples" / f"{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    prompts = {"prompts": list(rows), "kind": "points" if points else "grid"}
    write_atomically(path.with_suffix(".json"), json.dumps(prompts).encode())
    write_atomically(path, picture)
    return path


def _by_prompt(table: Table, count: int) -> dict[str, list[int]]:
    """Rows of each prompt, prompts in the order in which they appear, as many as a grid shows."""
    prompts = table.fields.get("prompt") or [""] * count
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        name = prompt if isinstance(prompt, str) else str(prompt)
        if name in rows or len(rows) < ROWS:
            rows.setdefault(name, []).append(row)
    return {name: own[:COLUMNS] for name, own in rows.items()}


def thumbnail(image: "npt.NDArray[Any]") -> "npt.NDArray[np.uint8]":
    """One sample as it is shown, uint8 [h, w, 3].

    >>> thumbnail(np.array([[[0.0], [1.0]]], dtype=np.float32)).shape
    (24, 48, 3)
    """
    pixels = np.asarray(image, dtype=np.float64)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    longer = max(height, width)
    factor = -(-longer // LARGEST)
    if factor > 1:
        trimmed = pixels[: height - height % factor or height, : width - width % factor or width]
        down, across = (max(1, size // factor) for size in trimmed.shape[:2])
        pixels = trimmed.reshape(down, -1, across, trimmed.shape[1] // across, channels).mean((1, 3))
    broken = ~np.isfinite(pixels).all(-1)
    pixels = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
    if channels == 4:
        pixels = pixels[..., :3] * pixels[..., 3:] + (1 - pixels[..., 3:])
    elif channels != 3:
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    shown = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    shown[broken] = _BROKEN
    repeat = max(1, SMALLEST // longer)
    return shown.repeat(repeat, axis=0).repeat(repeat, axis=1)


def grid(rows: Sequence[Sequence["npt.NDArray[Any]"]]) -> "npt.NDArray[np.uint8]":
    """Samples side by side, a row for each prompt, uint8 [h, w, 3]; places without a sample are grey."""
    cells = [list(map(thumbnail, row)) for row in rows]
    sizes = [cell.shape[:2] for row in cells for cell in row]
    high, wide = (max(size[axis] for size in sizes) for axis in (0, 1))
    across = max(map(len, cells))
    sheet = np.empty((len(cells) * (high + _GAP) + _GAP, across * (wide + _GAP) + _GAP, 3), np.uint8)
    sheet[:] = _PAPER
    for i, row in enumerate(cells):
        for j in range(across):
            top, left = _GAP + i * (high + _GAP), _GAP + j * (wide + _GAP)
            sheet[top : top + high, left : left + wide] = _EMPTY
            if j < len(row):
                sheet[top : top + row[j].shape[0], left : left + row[j].shape[1]] = row[j]
    return sheet


def png(pixels: "npt.NDArray[np.uint8]") -> bytes:
    """Encode uint8 [h, w, 3] as PNG."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata=_NO_VERSION)
    return buffer.getvalue()


def _points(table: Table, rows: dict[str, list[int]]) -> bytes:
    """All samples as points of the plane, coloured by prompt."""
    from matplotlib.figure import Figure

    where = table["sample"].double().cpu().numpy()
    names = [str(prompt) for prompt in table.fields.get("prompt") or [""] * len(where)]
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    for name in rows:
        mine = where[[own == name for own in names]]
        mine = mine[np.isfinite(mine).all(1)]
        axes.plot(mine[:, 0], mine[:, 1], ".", markersize=4, label=name or None)
    axes.set_aspect("equal", adjustable="datalim")
    if len(rows) > 1:
        axes.legend(fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata=_NO_VERSION)
    return buffer.getvalue()
