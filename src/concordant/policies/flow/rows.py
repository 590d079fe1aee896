"""Sampled rows of generations: who they are, how they were walked, and the columns that this makes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from concordant.kernels.flow import gaussian_logp
from concordant.policies.flow.schedules import Steps, step_mean

Columns = dict[str, tuple[str, Tensor]]


class Path(NamedTuple):
    """What an integration leaves, float32: states (n, s+1, d) with the start first, network outputs (n, s, d)."""

    states: Tensor
    outs: Tensor


class Rows(NamedTuple):
    """Who the rows of a table are: their tasks, and ids of shape (b)."""

    tasks: Sequence[Any]
    of_task: Tensor
    ids: Tensor
    group: Tensor
    seeds: Tensor


def row_columns(rows: Rows, path: Path, settings: Mapping[str, float]) -> Columns:
    """Columns of whole rows: ids, settings, the final latent, and a mask without steps."""
    size = len(rows.ids)
    return {
        "id": ("b", rows.ids),
        "task": ("b", torch.tensor([task.id for task in rows.tasks])[rows.of_task]),
        "group": ("b", rows.group),
        "episode": ("b", rows.ids.clone()),
        "seed": ("b", rows.seeds),
        "keep": ("b", torch.ones(size, dtype=torch.bool)),
        **{name: ("b", torch.full((size,), value)) for name, value in settings.items()},
        "sample": ("b d", path.states[:, -1].cpu()),
        "mask": ("b s", torch.zeros(size, 0, dtype=torch.bool)),
    }


def step_columns(
    steps: Steps,
    path: Path,
    mask: Tensor,
    trainable: Tensor,
    reduce: Literal["mean", "sum"],
    *,
    record_mean: bool = False,
) -> Columns:
    """Columns of single steps; masks of shape (1 or b, s)."""
    size = len(path.outs)
    mask = mask.expand(size, -1).clone()
    own = {name: values.expand(size, -1).cpu().contiguous() for name, values in steps._asdict().items()}
    before, after, outs = (t.cpu() for t in (path.states[:, :-1], path.states[:, 1:], path.outs))
    mean = step_mean(before, outs, own["coef_x"], own["coef_v"])
    logp = torch.where(mask, gaussian_logp(after, mean, own["std"], reduce=reduce), 0.0)
    made = {
        **{name: ("b s", values) for name, values in own.items()},
        "mask": ("b s", mask),
        "trainable": ("b s", trainable.expand(size, -1).clone()),
        "logp": ("b s", logp),
        "latent": ("b s d", before),
        "next_latent": ("b s d", after),
    }
    return {**made, "mean": ("b s d", mean)} if record_mean else made
