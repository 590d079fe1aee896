"""Grids of samples: whose sample stands where, in which colour, and what a broken one looks like."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from concordant.core.table import Table
from concordant.loops.samples import COLUMNS, ROWS, grid, save_samples, thumbnail


def table(prompts: list[str], images: list[Any], **columns: Any) -> Table:
    return Table.of(
        {"id": ("b", torch.arange(len(prompts))), **columns}, {"prompt": prompts, "image": images}
    )


def flat(value: float, *shape: int) -> Any:
    return np.full(shape or (8, 8, 1), value, np.float32)


def pixels(path: Path) -> Any:
    """The picture as numbers from 0 to 255, without alpha."""
    return np.round(imread(path)[..., :3] * 255).astype(int)


def test_each_row_is_a_prompt_and_samples_keep_their_places(tmp_path: Path) -> None:
    images = [flat(value) for value in (0.0, 0.2, 0.4, 0.6, 1.0)]
    path = save_samples(tmp_path, 12, table(["b", "a", "b", "a", "b"], images))
    assert path == tmp_path / "samples" / "00000012.png"
    shown = pixels(path)
    assert shown.shape == (2 * 50 + 2, 3 * 50 + 2, 3), "cells of 48 with a gap of 2"
    centres = [[int(shown[26 + 50 * i, 26 + 50 * j, 0]) for j in range(3)] for i in range(2)]
    assert centres == [[0, 102, 255], [51, 153, 240]], "the last place has no sample"
    assert (shown[:2] == 255).all()
    assert json.loads(path.with_suffix(".json").read_text()) == {"prompts": ["b", "a"], "kind": "grid"}


def test_at_most_ten_prompts_and_eight_samples(tmp_path: Path) -> None:
    prompts = [str(i % 12) for i in range(12 * 9)]
    path = save_samples(tmp_path, 0, table(prompts, [flat(0.5)] * len(prompts)))
    assert path is not None
    assert pixels(path).shape == (ROWS * 50 + 2, COLUMNS * 50 + 2, 3)
    assert len(json.loads(path.with_suffix(".json").read_text())["prompts"]) == ROWS


def test_the_same_samples_make_the_same_file(tmp_path: Path) -> None:
    images = list(np.random.default_rng(0).random((4, 8, 8, 3), dtype=np.float32))
    files = [
        save_samples(tmp_path / str(i), 3, table(["a"] * 4, images)) for i in range(2) if _folder(tmp_path, i)
    ]
    assert files[0] is not None and files[1] is not None
    assert files[0].read_bytes() == files[1].read_bytes()


def _folder(parent: Path, i: int) -> bool:
    (parent / str(i)).mkdir()
    return True


def test_tiny_images_are_repeated_and_large_ones_averaged() -> None:
    tiny = thumbnail(np.array([[[0.0], [1.0]], [[1.0], [0.0]]], np.float32))
    assert tiny.shape == (48, 48, 3)
    assert (tiny[:24, :24] == 0).all() and (tiny[:24, 24:] == 255).all()
    checks = (np.indices((512, 512)).sum(0) % 2).astype(np.float32)[..., None]
    assert thumbnail(checks).shape == (128, 128, 3)
    assert (thumbnail(checks) == 128).all()
    assert thumbnail(flat(0.5, 300, 100, 3)).shape == (100, 33, 3)
    assert thumbnail(flat(0.5, 100, 100, 3)).shape == (100, 100, 3)


def test_colours_and_transparency() -> None:
    red = np.zeros((2, 2, 3), np.float32)
    red[..., 0] = 1
    assert thumbnail(red)[0, 0].tolist() == [255, 0, 0]
    see_through = np.concatenate([red, flat(0.0, 2, 2, 1)], -1)
    assert thumbnail(see_through)[0, 0].tolist() == [255, 255, 255]
    assert thumbnail(flat(7.0))[0, 0].tolist() == [255] * 3
    assert thumbnail(flat(-7.0))[0, 0].tolist() == [0] * 3


def test_what_is_no_number_is_seen() -> None:
    image = flat(0.5)
    image[0, 0] = np.nan
    image[7, 7] = np.inf
    shown = thumbnail(image)
    assert shown[0, 0].tolist() == shown[-1, -1].tolist() == [255, 0, 200]
    assert shown[20, 20].tolist() == [128] * 3


def test_sizes_may_differ() -> None:
    sheet = grid([[flat(0.0, 8, 8, 1), flat(1.0, 100, 60, 3)]])
    assert sheet.shape == (104, 2 + 2 * 62, 3)


def test_text_has_no_pictures(tmp_path: Path) -> None:
    text = Table.of({"id": ("b", torch.arange(2))}, {"prompt": ["a", "b"], "completion": ["x", "y"]})
    assert save_samples(tmp_path, 0, text) is None
    assert list(tmp_path.iterdir()) == []


def test_points_of_a_plane_are_drawn_as_points(tmp_path: Path) -> None:
    angle = torch.linspace(0, 6.28, 60)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    ring[0, 0] = float("nan")
    images = [row.reshape(1, 1, 2).numpy() for row in ring]
    path = save_samples(tmp_path, 0, table(["p"] * 60, images, sample=("b d", ring)))
    assert path is not None
    assert json.loads(path.with_suffix(".json").read_text())["kind"] == "points"
    shown = pixels(path)
    coloured = (np.ptp(shown, axis=2) > 60).sum()
    assert coloured > 59 * 5, "59 points that can be drawn, several pixels each"


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 2), (1, 3, 1)])
def test_other_shapes(shape: tuple[int, ...]) -> None:
    assert thumbnail(np.ones(shape, np.float32)).dtype == np.uint8
