"""Statistics of a task over the last rewards it got, whenever that was: kernels with a memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.core.seeds import State
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check

Memory = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RollingZscore:
    """Deviation of each reward from the mean of the last rewards of its task, in their standard deviations (DDPO).

    Formula: `z_i = (x_i - mean m) / (std m + eps)`; m is the buffer of the row's task, the rewards of this batch
    included, or the whole batch while the buffer holds fewer than `min_count`. std divides by n.

    Args:
        buffer: how many rewards of a task are remembered, the last ones; at least 1.
        min_count: fewest rewards of a task to judge it by its own buffer; at most buffer.
        eps: added to the standard deviation.
        x: rewards, shape (b).
        task: id of the prompt, stable across batches, shape (b); below 0 is missing.
        id: unique id of each row, shape (b); the rewards of a batch enter in the order of their ids.
        state: the buffers, from `init()` or the last call.
        valid: which rows are judged and remembered, shape (b); None takes all that are not NaN.

    Returns:
        z, shape (b), no unit; and the new state: `task` [m] (sorted), `count` [m] and `values` [m buffer] (the oldest
        first, 0 where there is none yet). Arrays only; it grows by one row for each new task.

    Degenerate cases: a standard deviation of 0 gives exactly 0.0; so does a batch of one in the first rounds; not
    judged gives NaN and is not remembered. Of more than `buffer` rewards of a task in one batch the last are
    remembered.

    Differences: DDPO's code takes rows in batch order, and divides by eps alone where the buffer has no spread.
    Flow-GRPO forgets all rewards after each epoch, which is `group_zscore`.

    Source: DDPO [code]; buffer 16 to 32 in RLCM [code].

    >>> kernel = RollingZscore(buffer=2, min_count=2, eps=0.0)
    >>> task, id = torch.tensor([5]), torch.tensor([0])
    >>> z, state = kernel(torch.tensor([1.0]), task, id, kernel.init())
    >>> kernel(torch.tensor([3.0]), task, id, state)[0]
    tensor([1.])
    """

    buffer: int = 16
    min_count: int = 16
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 1 <= self.min_count <= self.buffer:
            raise ConfigError(
                f"RollingZscore: min_count must lie in [1, buffer], got min_count {self.min_count} and buffer "
                f"{self.buffer}; a task can never have more than buffer rewards"
            )
        check.between("RollingZscore", "eps", self.eps, 0.0, float("inf"))

    def init(self) -> Memory:
        """Return the memory of no rewards at all."""
        none = torch.zeros(0, dtype=torch.long)
        return {
            "task": none,
            "count": none.clone(),
            "values": torch.zeros(0, self.buffer, dtype=torch.float64),
        }

    def __call__(
        self,
        x: Float[Tensor, "b"],
        task: Int[Tensor, "b"],
        id: Int[Tensor, "b"],
        state: State,
        valid: Bool[Tensor, "b"] | None = None,
    ) -> tuple[Float[Tensor, "b"], Memory]:
        """Judge the rewards of a batch and remember them."""
        check.axes("RollingZscore", "x", x, "b")
        check.rows("RollingZscore", x, "task", task)
        check.rows("RollingZscore", x, "id", id)
        judged = cells.judge("RollingZscore", x, task, valid)
        name = judged.take(task).long()
        memory = _remember(_known(state, self.buffer), judged.x, name, judged.take(id), self.buffer)
        home = torch.searchsorted(memory["task"], name)
        filled = memory["count"][home]
        slots = torch.arange(self.buffer, device=x.device) < filled[:, None]
        row, slot = slots.nonzero(as_tuple=True)
        own = cells.moments(memory["values"][home[row], slot], row, name.numel(), ddof=0)
        batch = cells.moments(judged.x, torch.zeros_like(name), 1, ddof=0)
        mine = filled >= self.min_count
        mean = torch.where(mine, own.mean, batch.mean)
        std = torch.where(mine, own.std, batch.std)
        z = torch.where(std > 0, (judged.x - mean) / (std + self.eps), 0.0)
        return judged.put(z), memory


def _known(state: State | Memory, buffer: int) -> Memory:
    """The state as the arrays it is."""
    if not isinstance(state, dict) or set(state) != {"task", "count", "values"}:
        raise ConfigError(
            f"RollingZscore: the state must be what init() or the last call returned, got {state!r}"
        )
    width = state["values"].shape[1]
    if width != buffer:
        raise ConfigError(
            f"RollingZscore: the state has buffers of {width} rewards, this kernel has {buffer}; resume with "
            f"buffer={width}, or start from init()"
        )
    return state


def _remember(memory: Memory, x: Tensor, task: Tensor, id: Tensor, buffer: int) -> Memory:
    """Append the rewards to the buffers of their tasks; the last `buffer` of each stay."""
    device = x.device
    known = memory["task"].to(device)
    names = torch.unique(torch.cat([known, task]))
    spot = torch.searchsorted(names, known)
    count = torch.zeros_like(names).index_copy_(0, spot, memory["count"].to(device))
    values = torch.zeros(names.numel(), buffer, dtype=torch.float64, device=device)
    values.index_copy_(0, spot, memory["values"].to(device))
    home = torch.searchsorted(names, task)
    touched, local = torch.unique(home, return_inverse=True)
    row, slot = (torch.arange(buffer, device=device) < count[touched][:, None]).nonzero(as_tuple=True)
    cell = torch.cat([row, local])
    held = torch.cat([values[touched][row, slot], x])
    age = torch.cat([slot, buffer + id.argsort().argsort()])
    order = cells.ranked(age, cell)
    cell, held = cell[order], held[order]
    size = torch.bincount(cell, minlength=touched.numel())
    place = torch.arange(cell.numel(), device=device) - cells.starts(size)[cell]
    place = place - (size - buffer).clamp(min=0)[cell]
    fresh = torch.zeros(touched.numel(), buffer, dtype=torch.float64, device=device)
    kept = place >= 0
    fresh[cell[kept], place[kept]] = held[kept]
    values[touched] = fresh
    count[touched] = size.clamp(max=buffer)
    return {"task": names, "count": count, "values": values}
