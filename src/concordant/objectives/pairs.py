"""Objectives over pairs of rows of one group: regression of reward differences, and preference of one image to another.

A pair couples all steps of two rows, so rows are cut into pieces by whole groups; activations are computed again in the
backward pass where the policy's `recompute` asks for it, which keeps the memory of a piece independent of the steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from concordant.core.chain import Part, part
from concordant.core.errors import ChainError, ConfigError, nearest
from concordant.core.signature import Schema
from concordant.core.table import Table
from concordant.kernels import diffusion_dpo_margin, dpo_loss, reward_difference_loss
from concordant.objectives.policy_gradient import Loss, scored_part


@dataclass(frozen=True)
class PairWork:
    """Rows and pairs of one mini-batch, ready for the loss."""

    table: Table
    """What the policy reads to score the rows again."""
    mask: Tensor
    group: Tensor
    arrays: Mapping[str, Tensor]
    """What the loss reads of each row (b ...)."""
    left: Tensor
    right: Tensor
    pairs: Mapping[str, Tensor]
    """What the loss reads of each pair (p), its weight among them."""

    def active(self) -> Tensor:
        """Index of the rows that are in a pair."""
        return torch.cat([self.left, self.right]).unique()

    def take(self, rows: Tensor) -> "PairWork":
        """Return some rows (index) and the pairs among them."""
        place = torch.full((len(self.mask),), -1, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        left, right = place[self.left], place[self.right]
        inside = (left >= 0) & (right >= 0)
        return replace(
            self,
            table=self.table.take(rows),
            mask=self.mask[rows],
            group=self.group[rows],
            arrays={name: values[rows] for name, values in self.arrays.items()},
            left=left[inside],
            right=right[inside],
            pairs={name: values[inside] for name, values in self.pairs.items()},
        )

    def merged(self) -> "PairWork":
        """No two rows are equal."""
        return self

    def pieces(self, cells: int) -> Iterator["PairWork"]:
        """Cut into pieces of whole groups with at most `cells` steps; a larger group is a piece of its own."""
        groups, of_row = self.group.unique(return_inverse=True)
        steps = torch.zeros(len(groups), dtype=torch.long).index_add_(0, of_row, self.mask.sum(1))
        piece, filled, number = torch.zeros_like(steps), 0, 0
        for place, size in enumerate(steps.tolist()):
            if filled and filled + size > cells:
                number, filled = number + 1, 0
            piece[place] = number
            filled += size
        for chosen in range(number + 1 if len(groups) else 0):
            yield self.take((piece[of_row] == chosen).nonzero()[:, 0])


@dataclass(frozen=True)
class _Pairs:
    """What the objectives over pairs share: where pairs come from, and how rows and pairs of a table are collected."""

    pairs: str = "pairs"
    """Stage that made the pairs: its columns `.left` and `.right` (for a preference, left is the better one)."""

    whole_groups = True
    """Mini-batches hold whole groups, so that no pair is split."""

    def _work(
        self,
        table: Table,
        reads: Sequence[str] | None,
        among: Table | None,
        rows: Mapping[str, str],
        pairs: Mapping[str, str],
    ) -> PairWork:
        known = self._known(table, rows.values(), pairs.values())
        total = known if among is None else self._known(among, rows.values(), pairs.values())
        found = {name: table[column][known].float() for name, column in pairs.items()}
        return PairWork(
            scored_part(table, reads),
            table["mask"],
            table["group"],
            {name: table[column] for name, column in rows.items()},
            table[f"{self.pairs}.left"][known],
            table[f"{self.pairs}.right"][known],
            {**found, "weight": torch.full((int(known.sum()),), 1.0 / max(int(total.sum()), 1))},
        )

    def _known(self, table: Table, rows: Iterable[str], pairs: Iterable[str]) -> Tensor:
        """Which pairs are kept at both ends and lack nothing that the table has."""
        left, right = table[f"{self.pairs}.left"], table[f"{self.pairs}.right"]
        whole = table["keep"] if "keep" in table else torch.ones(table.rows, dtype=torch.bool)
        for column in rows:
            if column in table:  # latents of other processes are not here
                whole = whole & ~table[column].isnan().flatten(1).any(1)
        known = whole[left] & whole[right]
        for column in pairs:
            known = known & ~table[column].isnan()
        return known

    def _check(self, schema: Schema, columns: Sequence[str]) -> None:
        for column in (f"{self.pairs}.left", f"{self.pairs}.right", *columns):
            if column not in schema:
                raise ChainError(
                    f"the objective reads {column!r}, which nothing makes; {nearest(column, schema)}"
                )

    def numbers(self, table: Table) -> dict[str, float]:
        """Pairs of the table, and the share of rows in one."""
        left, right = table[f"{self.pairs}.left"], table[f"{self.pairs}.right"]
        used = torch.cat([left, right]).unique()
        return {"pairs": float(len(left)), "useful": len(used) / max(table.rows, 1)}


@dataclass(frozen=True)
class RewardDifference(_Pairs):
    """Regress the difference of two rewards on the difference of log-likelihood ratios to the reference (PRDP, REBEL).

    Averaged over pairs, minimised. With `clip`, each step's log-ratio may leave its value at sampling time by that much
    before the clipped loss takes over, and the larger of the two counts.
    """

    loss_part: Part = field(default_factory=lambda: part(reward_difference_loss, beta=1.0, clip=1e-4))
    gap: str = "gap"
    """Column of reward differences left minus right (p)."""

    needs_reference = True
    reference_columns: Mapping[str, str] = field(default_factory=lambda: {"ref_logp": "b s"}, repr=False)

    def check(self, schema: Schema) -> None:
        """Refuse columns that nothing makes."""
        self._check(schema, (self.gap, "logp", "ref_logp"))

    def prepare(
        self, table: Table, reads: Sequence[str] | None = None, among: Table | None = None
    ) -> PairWork:
        """Collect the pairs whose rewards are known; `among` are the rows whose pairs the mean counts."""
        return self._work(
            table, reads, among, {"old_logp": "logp", "ref_logp": "ref_logp"}, {"gap": self.gap}
        )

    def loss(self, work: PairWork, policy: Any) -> Loss:
        """Return the loss of these pairs under the current policy."""
        logp = policy.rescore(work.table, ("logp",))["logp"]
        old, reference = (work.arrays[name].to(logp) for name in ("old_logp", "ref_logp"))
        left, right = work.left.to(logp.device), work.right.to(logp.device)
        now, then = logp - reference, old - reference
        each = self.loss_part(
            now[left], now[right], work.pairs["gap"].to(logp), old_left=then[left], old_right=then[right]
        )
        change = (logp.detach() - old)[work.mask.to(logp.device)]
        shift = float(change.abs().max()) if change.numel() else 0.0
        return Loss((each * work.pairs["weight"].to(each)).sum(), shift)


@dataclass(frozen=True)
class DenoisingPreference(_Pairs):
    """Prefer the left image of a pair by its denoising error (Diffusion-DPO).

    `margin = (e_right - e_right_ref) - (e_left - e_left_ref)` at times and noises that both images share, made by the
    probe `DenoisingErrors`; loss `-log sigmoid(beta / 2 * margin)`, averaged over draws and pairs; log 2 at the start.
    """

    beta: float = 100.0

    needs_reference = False
    reference_columns: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"beta must be above 0, got {self.beta}")

    def check(self, schema: Schema) -> None:
        """Refuse columns that nothing makes."""
        self._check(schema, ("sample", "draw_time", "draw_noise", "ref_error"))

    def prepare(
        self, table: Table, reads: Sequence[str] | None = None, among: Table | None = None
    ) -> PairWork:
        """Collect the pairs; `among` are the rows whose pairs the mean counts."""
        names = ("sample", "draw_time", "draw_noise", "ref_error")
        return self._work(table, ("prompt", "mask"), among, {name: name for name in names}, {})

    def loss(self, work: PairWork, policy: Any) -> Loss:
        """Return the loss of these pairs under the current policy."""
        a = work.arrays
        error = policy.errors(a["sample"], work.table.fields["prompt"], a["draw_time"], a["draw_noise"])
        left, right = work.left.to(error.device), work.right.to(error.device)
        errors = [
            values[end].flatten() for values in (error, a["ref_error"].to(error)) for end in (left, right)
        ]
        each = dpo_loss(diffusion_dpo_margin(*errors), beta=self.beta).reshape(len(left), -1)
        return Loss((each.mean(1) * work.pairs["weight"].to(each)).sum(), 0.0)
