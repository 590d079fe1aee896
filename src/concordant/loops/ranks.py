"""Several processes of one run (`accelerate launch`): each samples its share of the tasks, statistics see all rows.

Rows are addressed by id and denominators count all rows, so that any number of processes takes the steps that one
process would take, up to floating-point summation order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from concordant.core.errors import ConfigError
from concordant.core.table import Table
from concordant.samplers import Cost

HEAVY = "d"
"""Columns along this axis stay with the process that sampled them."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls, device: str = "cpu") -> "Ranks":
        """Join the processes that a launcher started (environment variables `WORLD_SIZE`, `RANK`); alone without.

        Processes whose policy is on the CPU are connected by gloo, others by what accelerate takes for the device.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=torch.device(device).type == "cpu")
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.rank == 0

    def check(self, sampler: Any, learners: Sequence[Any], tasks: int) -> None:
        """Refuse what cannot be shared out."""
        if self.size == 1:
            return
        if not getattr(sampler, "shares", False):
            raise ConfigError(
                f"the sampler {type(sampler).__name__} keeps a memory of its own tasks or asks for more of them; "
                "run it in one process"
            )
        if learners:
            raise ConfigError("arms with learned parts run in one process; their updates are not shared")
        if tasks % self.size:
            raise ConfigError(
                f"{tasks} prompts a step cannot be shared equally by {self.size} processes; choose a train.prompts "
                f"that is a multiple of {self.size}"
            )

    def share(self, tasks: Sequence[Any]) -> Sequence[Any]:
        """This process's tasks, a contiguous part."""
        each = len(tasks) // self.size
        return tasks[self.rank * each : (self.rank + 1) * each]

    def gather(self, table: Table) -> Table:
        """The rows of all processes in the order of tasks, without fields and latents; the table itself if alone."""
        if self.size == 1:
            return table
        light = Table({name: table.column(name) for name in table.names if HEAVY not in table.axes(name)})
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, {name: (light.axes(name), light[name]) for name in light.names})
        return Table.concat([Table({}).with_columns(part) for part in parts])

    def own(self, whole: Table, table: Table) -> Table:
        """This process's rows of a gathered table, with the fields and latents that stayed here."""
        if self.size == 1:
            return whole
        mine = whole.take(torch.isin(whole["id"], table["id"]))
        heavy = {name: (table.axes(name), table[name]) for name in table.names if HEAVY in table.axes(name)}
        return mine.with_columns(heavy, table.fields)

    def total(self, cost: Cost) -> Cost:
        """Cost of all processes."""
        if self.size == 1:
            return cost
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, cost)
        return sum(parts, Cost())

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; losses are sums over rows with denominators of the whole table."""
        if self.size > 1:
            for parameter in parameters:
                dist.all_reduce(parameter.grad)

    def add(self, value: float) -> float:
        """Sum of a number over all processes."""
        if self.size == 1:
            return value
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, value)
        return float(sum(parts))

    def wait(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()
