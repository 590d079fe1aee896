"""The policy-gradient objective: ratio x term x aggregation x KL, over one or several advantage streams.

Aggregations are per-token weights, fixed for the whole mini-batch before any forward pass, so the loss is a plain sum
over rows. That makes micro-batching exact; rows that cannot contribute are left out, and equal rows are merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from concordant.core.chain import Part, part
from concordant.core.errors import ChainError, nearest
from concordant.core.seeds import mix
from concordant.core.signature import Schema
from concordant.core.table import Table
from concordant.kernels import clip_term, rollout_mean, token_ratio

SCORED_COLUMNS = ("prompt_tokens", "prompt_mask", "tokens", "mask", "temperature")
"""What a policy needs to score rows again."""


@dataclass(frozen=True)
class Stream:
    """One advantage with its own aggregation: column names of the advantage, of a weight, and of the rows it covers.

    `weight` multiplies the numerator only; `where` (boolean) also leaves the other rows out of the denominators.
    """

    advantage: str = "advantage"
    weight: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class Work:
    """Tensors of one mini-batch, ready for the loss: everything but the current log-probabilities."""

    table: Table
    mask: Tensor
    old_logp: Tensor
    ref_logp: Tensor | None
    advantages: Tensor
    weights: Tensor
    kl_weights: Tensor | None

    def take(self, rows: Tensor) -> "Work":
        """Return some rows (index); weights keep their meaning, because denominators are already in them."""
        return Work(
            self.table.take(rows),
            self.mask[rows],
            self.old_logp[rows],
            None if self.ref_logp is None else self.ref_logp[rows],
            self.advantages[:, rows],
            self.weights[:, rows],
            None if self.kl_weights is None else self.kl_weights[rows],
        )

    def to(self, device: torch.device) -> "Work":
        """Return the tensors that the loss reads on another device."""
        if self.mask.device == device:
            return self
        names = ("mask", "old_logp", "ref_logp", "advantages", "weights", "kl_weights")
        moved: Any = {n: getattr(self, n).to(device) for n in names if getattr(self, n) is not None}
        return replace(self, **moved)

    def active(self) -> Tensor:
        """Index of the rows with a non-zero coefficient somewhere; all others have zero loss and zero gradient."""
        force = ((self.advantages != 0) & (self.weights != 0)).any(-1).any(0)
        if self.kl_weights is not None:
            force = force | (self.kl_weights != 0).any(-1)
        return force.nonzero()[:, 0]

    def merged(self) -> "Work":
        """Merge rows with the same prompt, tokens and advantages into one with the summed weights."""
        first, inverse = _equal_rows(self.table, self.mask, self.advantages)
        if len(first) == len(inverse):
            return self
        work = self.take(first)
        weights = work.weights.new_zeros(work.weights.shape).index_add_(1, inverse, self.weights)
        kl_weights = None
        if self.kl_weights is not None:
            kl_weights = work.weights.new_zeros(work.mask.shape).index_add_(0, inverse, self.kl_weights)
        return replace(work, weights=weights, kl_weights=kl_weights)


def _equal_rows(table: Table, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row of each class of equal rows, and the class of each row."""
    parts = [
        table["tokens"].masked_fill(~mask, -1),
        table["prompt_tokens"].masked_fill(~table["prompt_mask"], -1),
    ]
    parts += [stream.contiguous().view(torch.int32).long() for stream in advantages.float()]
    rows = torch.cat(parts, dim=1)
    place = mix(torch.arange(rows.shape[1], device=rows.device))
    key = mix(rows ^ place).sum(1)
    _, inverse = key.unique(return_inverse=True)
    order = torch.arange(len(key), device=key.device)
    first = torch.full((int(inverse.max()) + 1 if len(key) else 0,), len(key), device=key.device)
    first = first.scatter_reduce(0, inverse, order, "amin")
    if not torch.equal(rows, rows[first[inverse]]):  # two different rows share a 64-bit key
        return order, order
    return first, inverse


@dataclass(frozen=True)
class PolicyGradient:
    """Loss = sum over streams of aggregate(term(ratio, advantage)) + kl_weight * aggregate(KL to the reference).

    Each stream is clipped and aggregated over its own steps, then added: a blend of losses is not the loss of the
    blend. The loss is minimised. A step whose advantage is missing (NaN) never trains and never counts.
    """

    ratio: Part = field(default_factory=lambda: part(token_ratio))
    term: Part = field(default_factory=lambda: part(clip_term))
    aggregate: Part = field(default_factory=lambda: part(rollout_mean))
    kl: Part | None = None
    kl_weight: float = 0.0
    streams: tuple[Stream, ...] = (Stream(),)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads `ref_logp`."""
        return self.kl is not None and self.kl_weight != 0

    def check(self, schema: Schema) -> None:
        """Refuse streams over columns that the chain does not make."""
        for stream in self.streams:
            for column in (stream.advantage, stream.weight, stream.where):
                if column is not None and column not in schema:
                    raise ChainError(
                        f"objective stream reads {column!r}, which nothing makes; {nearest(column, schema)}"
                    )

    def prepare(self, table: Table) -> Work:
        """Fix advantages and weights of a mini-batch; denominators count its rows."""
        mask = table["mask"]
        kept = (
            table["keep"] if "keep" in table else torch.ones(table.rows, dtype=torch.bool, device=mask.device)
        )
        advantages, weights = [], []
        for stream in self.streams:
            advantage = _over_steps(table[stream.advantage], mask).float()
            inside = mask & kept[:, None] & ~advantage.isnan()
            if stream.where is not None:
                inside = inside & _over_steps(table[stream.where], mask).bool()
            weight = self.aggregate(inside, inside.any(1))
            if stream.weight is not None:
                weight = weight * _over_steps(table[stream.weight], mask).nan_to_num(nan=0.0)
            advantages.append(advantage.masked_fill(~inside, 0.0))
            weights.append(weight)
        kl_weights = None
        if self.needs_reference:
            inside = mask & kept[:, None]
            kl_weights = self.kl_weight * self.aggregate(inside, inside.any(1))
        return Work(
            Table({name: table.column(name) for name in SCORED_COLUMNS if name in table}),
            mask,
            table["logp"],
            table["ref_logp"] if self.needs_reference else None,
            torch.stack(advantages),
            torch.stack(weights).float(),
            kl_weights,
        )

    def loss(self, work: Work, logp: Tensor) -> Tensor:
        """Return the (unnormalised, additive) loss of these rows, with graph through `logp`."""
        work = work.to(logp.device)
        mask, old = work.mask, work.old_logp
        ratio = call_part(self.ratio, logp=logp, old_logp=old, mask=mask)
        total = logp.new_zeros(())
        for advantage, weight in zip(work.advantages, work.weights, strict=True):
            term = call_part(self.term, ratio=ratio, logp=logp, advantage=advantage)
            total = total + torch.where(weight != 0, term * weight, 0.0).sum()
        if self.kl is not None and work.kl_weights is not None and work.ref_logp is not None:
            kl = call_part(self.kl, logp=logp, ref_logp=work.ref_logp)
            total = total + torch.where(mask, kl * work.kl_weights, 0.0).sum()
        return total


def call_part(called: Part, **available: Any) -> Tensor:
    """Call a loss part with those of the available arrays that it declares."""
    return called(**{name: available[name] for name in called.signature.arrays if name in available})


def _over_steps(values: Tensor, mask: Tensor) -> Tensor:
    return values[:, None].expand(mask.shape) if values.dim() == 1 else values


def micro_batches(lengths: Tensor, tokens: int) -> Sequence[Tensor]:
    """Split rows into pieces of at most `tokens` padded tokens, longest first; each is cut to its longest member.

    A row longer than the limit gets a piece of its own.
    """
    order = lengths.argsort(descending=True, stable=True)
    pieces, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        end = start + max(tokens // longest, 1)
        pieces.append(order[start:end])
        start = end
    return pieces
