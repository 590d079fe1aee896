"""The tree of distinct prefixes of a batch of rows, so that a position shared by several rows is computed once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from concordant.core.seeds import mix
from concordant.policies.attention import Layout

BLOCKS = 4  # blocks of rows that attention pads each to its longest row
SMALL = 8  # rows that are not worth a block of their own


@dataclass(frozen=True)
class Rows:
    """Prompt and completion of each row, joined, starting at column 0."""

    tokens: Tensor
    """int64 (b, l)."""
    length: Tensor
    """Tokens of each row: prompt, and completion up to the last trained token, int64 (b)."""
    prompt: Tensor
    """Tokens of the prompt, int64 (b)."""


@dataclass(frozen=True)
class Prefixes:
    """What one packed forward pass reads, and which result belongs to which token.

    Nodes are distinct prefixes that some row continues; targets are distinct prefixes that end in a trained token.
    """

    tokens: Tensor
    """Last token of each node, int64 (n)."""
    positions: Tensor
    """Position of that token, int64 (n)."""
    layout: Layout
    parents: Tensor
    """Node that each target continues, int64 (c)."""
    chosen: Tensor
    """Last token of each target, int64 (c)."""
    rows: Tensor
    """A row that holds each target, int64 (c)."""
    of_step: Tensor
    """Target of each completion step, int64 (b, s); 0 where the step is not trained."""


def join(prompt: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor) -> Rows:
    """Join left-padded prompts (b q) and completions (b s); tokens between two trained ones are context."""
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * steps).amax(1)
    size = prompt_mask.sum(1)
    length = torch.where(last > 0, size + last, 0)
    width = max(int(length.max()), 1)
    column = torch.arange(width, device=mask.device) + (prompt.shape[1] - size)[:, None]
    both = torch.cat([prompt, tokens], dim=1)
    return Rows(both.gather(1, column.clamp(max=both.shape[1] - 1)), length, size)


def _classes(rows: Rows, salt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the class of each position (b l, equal for equal prefixes), its flat first occurrence, and validity."""
    count, width = rows.tokens.shape
    place = torch.arange(width, device=rows.tokens.device)
    valid = place < rows.length[:, None]
    key = mix(rows.tokens ^ mix(place)).cumsum(1) + mix(salt)[:, None]
    flat = valid.reshape(-1).nonzero()[:, 0]
    _, inverse = key.reshape(-1)[flat].unique(return_inverse=True)
    classes = torch.zeros(count * width, dtype=torch.int64, device=key.device)
    classes[flat] = inverse
    first = torch.full((int(inverse.max()) + 1,), count * width, device=key.device)
    first = first.scatter_reduce(0, inverse, flat, "amin")
    one = first[inverse]  # the occurrence that stands for this position
    same = (rows.tokens.reshape(-1)[flat] == rows.tokens.reshape(-1)[one]) & (flat % width == one % width)
    same &= (salt[flat // width] == salt[one // width]) & (
        (flat % width == 0) | (classes[(flat - 1).clamp(min=0)] == classes[(one - 1).clamp(min=0)])
    )
    if not bool(same.all()):  # two different prefixes share a 64-bit key: share nothing
        classes[flat] = torch.arange(len(flat), device=key.device)
        first = flat
    return classes.view(count, width), first, valid


def tree(prompt: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor, salt: Tensor) -> Prefixes:
    """Build the prefix tree of a batch in which some token is trained.

    Args:
        prompt: left-padded ids, int64 (b q).
        prompt_mask: bool (b q).
        tokens: completion ids, int64 (b s).
        mask: trained tokens, bool (b s).
        salt: rows share prefixes only if their salts are equal, int64 (b).
    """
    rows = join(prompt, prompt_mask, tokens, mask)
    order = rows.length.argsort(descending=True, stable=True)
    rows = Rows(rows.tokens[order], rows.length[order], rows.prompt[order])
    classes, first, valid = _classes(rows, salt[order])
    count, width = classes.shape
    size, device = len(first), mask.device
    read = valid & (torch.arange(1, width + 1, device=device) < rows.length[:, None])
    reads = read.reshape(-1).nonzero()[:, 0]  # the last token of a row is predicted, never read
    used = torch.full((size,), count * width, device=device)
    used = used.scatter_reduce(0, classes.reshape(-1)[reads], reads, "amin")
    is_node = used < count * width
    node = is_node.cumsum(0) - 1
    flat = used[is_node]
    layout = torch.zeros(count * width, dtype=torch.int64, device=device)
    layout[reads] = node[classes.reshape(-1)[reads]]
    of_step, ends = _targets(rows, classes, first, mask[order])
    return Prefixes(
        tokens=rows.tokens.reshape(-1)[flat],
        positions=flat % width,
        layout=_layout(layout.view(count, width), flat, rows.length - 1),
        parents=node[classes.reshape(-1)[ends - 1]],
        chosen=rows.tokens.reshape(-1)[ends],
        rows=order[ends // width],
        of_step=of_step[order.argsort()],
    )


def _targets(rows: Rows, classes: Tensor, first: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target of each completion step (b s), and the flat position where each target ends (c)."""
    step = rows.prompt[:, None] + torch.arange(mask.shape[1], device=mask.device)
    of_step = classes.gather(1, step.clamp(max=classes.shape[1] - 1))
    is_target = torch.zeros(len(first), dtype=torch.bool, device=mask.device)
    is_target[of_step[mask]] = True
    return (is_target.cumsum(0) - 1)[of_step].masked_fill(~mask, 0), first[is_target]


def _layout(nodes: Tensor, flat: Tensor, length: Tensor) -> Layout:
    """Cut rows (b l), longest first, into blocks, and say where in them each node is computed.

    Args:
        nodes: node at each position, int64 (b l).
        flat: position of each node in `nodes`, int64 (n).
        length: positions of each row, descending, int64 (b).
    """
    count, width = nodes.shape
    step = max(-(-count // BLOCKS), SMALL)
    blocks: list[Tensor] = []
    starts: list[int] = []
    offset = 0
    for start in range(0, count, step):
        longest = max(int(length[start]), 1)
        block = nodes[start : start + step, :longest]
        blocks.append(block)
        starts += range(offset, offset + block.numel(), longest)
        offset += block.numel()
    begin = torch.tensor(starts, device=nodes.device)
    return Layout(tuple(blocks), begin[flat // width] + flat % width)
