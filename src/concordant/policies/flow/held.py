"""The graph of sampling, kept for the optimiser step that follows: there the policy is still the one that sampled."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from concordant.core.table import Table

WORTH = 2 / 3
"""Least share of the sampled rows that makes a backward pass through all of them cheaper than a second forward pass."""


class Held(NamedTuple):
    """What sampling said of each row, with graph, and the weights it said so with."""

    ids: Tensor
    found: dict[str, Tensor]
    versions: tuple[int, ...]

    def of(self, table: Table, parameters: Sequence[Tensor]) -> dict[str, Tensor] | None:
        """The rows of a table, zero outside its mask; None if weights moved since, or rows are unknown or few."""
        if versions(parameters) != self.versions or "id" not in table:
            return None
        ids, order = self.ids.sort()
        place = torch.searchsorted(ids, table["id"]).clamp(max=len(ids) - 1)
        if table.rows < WORTH * len(ids) or not torch.equal(ids[place], table["id"]):
            return None
        rows, mask = order[place], table["mask"]
        picked = {name: values[rows.to(values.device)] for name, values in self.found.items()}
        return {
            name: torch.where(mask.to(v.device).reshape(mask.shape + (1,) * (v.dim() - 2)), v, 0.0).to(
                mask.device
            )
            for name, v in picked.items()
        }


def versions(parameters: Sequence[Tensor]) -> tuple[int, ...]:
    """Counters that every change of a weight in place moves."""
    return tuple(parameter._version for parameter in parameters)
