"""The policy-gradient objective: ratio x term x aggregation x KL, over one or several advantage streams.

Aggregations are per-token weights, fixed for the whole mini-batch before any forward pass, so the loss is a plain sum
over rows. That makes micro-batching exact; rows that cannot contribute are left out, and equal rows are merged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from concordant.core.chain import Part, part
from concordant.core.errors import ChainError, nearest
from concordant.core.seeds import mix
from concordant.core.signature import Schema
from concordant.core.table import Table
from concordant.kernels import clip_term, rollout_mean, token_ratio

SCORED = {"logp": "b s", "mean": "b s d"}
"""What a policy may give a loss, with graph, and its axes."""
_MADE = (*SCORED, "mask", "advantage", "ratio")


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
    """Tensors of one mini-batch, ready for the loss: everything but what the current policy says."""

    table: Table
    """What the policy reads to score the rows again."""
    mask: Tensor
    arrays: Mapping[str, Tensor]
    """What the loss parts read of the table, each (b s ...), by the names of their parameters."""
    advantages: Tensor
    weights: Tensor
    kl_weights: Tensor | None

    def take(self, rows: Tensor) -> "Work":
        """Return some rows (index); weights keep their meaning, because denominators are already in them."""
        return Work(
            self.table.take(rows),
            self.mask[rows],
            {name: values[rows] for name, values in self.arrays.items()},
            self.advantages[:, rows],
            self.weights[:, rows],
            None if self.kl_weights is None else self.kl_weights[rows],
        )

    def to(self, device: torch.device) -> "Work":
        """Return the tensors that the loss reads on another device."""
        if self.mask.device == device:
            return self
        names = ("mask", "advantages", "weights", "kl_weights")
        moved: Any = {n: getattr(self, n).to(device) for n in names if getattr(self, n) is not None}
        return replace(self, arrays={n: v.to(device) for n, v in self.arrays.items()}, **moved)

    def active(self) -> Tensor:
        """Index of the rows with a non-zero coefficient somewhere; all others have zero loss and zero gradient."""
        force = ((self.advantages != 0) & (self.weights != 0)).any(-1).any(0)
        if self.kl_weights is not None:
            force = force | (self.kl_weights != 0).any(-1)
        return force.nonzero()[:, 0]

    def merged(self) -> "Work":
        """Merge rows with the same prompt, tokens and advantages into one with the summed weights."""
        if "tokens" not in self.table:  # continuous actions: no two rows are equal
            return self
        first, inverse = _equal_rows(self.table, self.mask, self.advantages)
        if len(first) == len(inverse):
            return self
        work = self.take(first)
        weights = work.weights.new_zeros(work.weights.shape).index_add_(1, inverse, self.weights)
        kl_weights = None
        if self.kl_weights is not None:
            kl_weights = work.weights.new_zeros(work.mask.shape).index_add_(0, inverse, self.kl_weights)
        return replace(work, weights=weights, kl_weights=kl_weights)

    def pieces(self, cells: int) -> Iterator["Work"]:
        """Cut into pieces of at most `cells` padded tokens (or network evaluations); see `micro_batches`."""
        lengths = self.mask.sum(1)
        if "prompt_mask" in self.table:
            lengths = lengths + self.table["prompt_mask"].sum(1)
        for rows in micro_batches(lengths, cells):
            yield self.take(rows)


class Loss(NamedTuple):
    """Value of a loss with graph, and the largest change of a log-probability since the rows were sampled."""

    value: Tensor
    shift: float


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

    whole_groups = False
    """A mini-batch may hold a part of a group."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads what a reference says."""
        return self.kl is not None and self.kl_weight != 0

    @property
    def _parameters(self) -> tuple[str, ...]:
        """Arrays that ratio, term and KL declare."""
        used = (self.ratio, self.term, *((self.kl,) if self.kl is not None and self.needs_reference else ()))
        return tuple(dict.fromkeys(name for p in used for name in p.signature.arrays))

    @property
    def columns(self) -> dict[str, str]:
        """Columns that the parts read, by the names of their parameters: `old_x` is x as it was sampled."""
        read = {"old_logp", *self._parameters} - set(_MADE)
        return {name: name.removeprefix("old_") for name in sorted(read)}

    @property
    def reference_columns(self) -> dict[str, str]:
        """Which of the read columns a reference model makes, with their axes."""
        return {name: SCORED[name.removeprefix("ref_")] for name in self.columns if name.startswith("ref_")}

    @property
    def wants(self) -> tuple[str, ...]:
        """What the current policy must say."""
        return tuple(name for name in SCORED if name == "logp" or name in self._parameters)

    def check(self, schema: Schema) -> None:
        """Refuse parts and streams over columns that nothing makes."""
        for stream in self.streams:
            for column in (stream.advantage, stream.weight, stream.where):
                if column is not None and column not in schema:
                    raise ChainError(
                        f"objective stream reads {column!r}, which nothing makes; {nearest(column, schema)}"
                    )
        for parameter, column in self.columns.items():
            if column not in schema:
                raise ChainError(
                    f"the objective reads {column!r} (for {parameter!r}), which nothing makes; "
                    f"{nearest(column, schema)}"
                    + ("; set record_mean=True on the sampler" if column == "mean" else "")
                )

    def numbers(self, table: Table) -> dict[str, float]:
        """Share of rows with a missing advantage, and of rows that train."""
        inside = table["mask"]
        steps = [_over_steps(table[stream.advantage], inside) for stream in self.streams]

        def share(cells: list[Tensor]) -> float:
            return float(torch.stack([(c & inside).any(1) for c in cells]).any(0).float().mean())

        return {
            "missing/advantage": share([a.isnan() for a in steps]),
            "useful": share([a.nan_to_num() != 0 for a in steps]),
        }

    def prepare(self, table: Table, reads: Sequence[str] | None = None, among: Table | None = None) -> Work:
        """Fix advantages and weights of a mini-batch; denominators count its rows.

        Args:
            table: rows with what `columns` and the streams name.
            reads: columns and fields that the policy needs to score rows again; None keeps all columns.
            among: rows that the denominators count, those of the table among them and in its order; None is the
                table.
        """
        advantages, weights, kl_weights = self._weigh(table if among is None else among)
        if among is not None:
            here = torch.isin(among["id"], table["id"]).nonzero()[:, 0]
            advantages, weights = advantages[:, here], weights[:, here]
            kl_weights = None if kl_weights is None else kl_weights[here]
        arrays = {name: table[column] for name, column in self.columns.items()}
        return Work(scored_part(table, reads), table["mask"], arrays, advantages, weights, kl_weights)

    def _weigh(self, table: Table) -> tuple[Tensor, Tensor, Tensor | None]:
        """Advantages and weights of each stream, weights of the KL; float32, zero where nothing trains."""
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
        return torch.stack(advantages), torch.stack(weights).float(), kl_weights

    def loss(self, work: Work, policy: Any) -> Loss:
        """Return the (unnormalised, additive) loss of these rows under the current policy."""
        scored = policy.rescore(work.table, self.wants)
        logp = scored["logp"]
        work = work.to(logp.device)
        mask, arrays = work.mask, {**work.arrays, **scored}
        ratio = call_part(self.ratio, mask=mask, **arrays)
        total = logp.new_zeros(())
        for advantage, weight in zip(work.advantages, work.weights, strict=True):
            term = call_part(self.term, ratio=ratio, advantage=advantage, **arrays)
            total = total + torch.where(weight != 0, term * weight, 0.0).sum()
        if self.kl is not None and work.kl_weights is not None:
            kl = call_part(self.kl, **arrays)
            total = total + torch.where(mask, kl * work.kl_weights, 0.0).sum()
        change = (logp.detach() - arrays["old_logp"])[mask]
        return Loss(total, float(change.abs().max()) if change.numel() else 0.0)


def scored_part(table: Table, reads: Sequence[str] | None) -> Table:
    """The columns and fields of a table that a policy reads; all columns if it does not say."""
    if reads is None:
        return Table({name: table.column(name) for name in table.names if "b" in table.axes(name)})
    columns = {name: table.column(name) for name in reads if name in table}
    return Table(columns, {name: table.fields[name] for name in reads if name in table.fields})


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
