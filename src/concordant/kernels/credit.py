"""Credit over steps and segments: spreading, pooling, returns, advantages, shaping. Row by row."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import DataError
from concordant.kernels import _scan as scan
from concordant.kernels import _validate as check


class GAE(NamedTuple):
    """Advantage and value target of each step."""

    advantage: Float[Tensor, "b s"]
    returns: Float[Tensor, "b s"]


def spread(x: Float[Tensor, "b"], mask: Bool[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Give each masked step the value of its row.

    Formula: `y_{i,t} = x_i * mask_{i,t}`.

    Args:
        x: one value for each row, shape (b).
        mask: steps the policy chose, shape (b s).

    Returns:
        Shape (b s), unit of x; 0 outside the mask.

    Degenerate cases: a missing value is NaN on its masked steps only; a row without masked steps is 0.

    Differences: TRL keeps (b) and broadcasts in the loss; verl does this.

    Source: GRPO outcome supervision [paper].

    >>> spread(torch.tensor([2.0]), torch.tensor([[True, False]]))
    tensor([[2., 0.]])
    """
    check.axes("spread", "x", x, "b")
    check.axes("spread", "mask", mask, "b s")
    check.leading("spread", "x", x, "mask", mask, 1)
    return torch.where(mask, x[:, None], 0.0)


def spread_segments(x: Float[Tensor, "b n"], segment: Int[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Give each step the value of its segment.

    Formula: `y_{i,t} = x_{i, segment_{i,t}}`.

    Args:
        x: one value for each segment, shape (b n).
        segment: the segment of each step, shape (b s); below 0 is outside.

    Returns:
        Shape (b s), unit of x; 0 outside.

    Degenerate cases: a missing value is NaN on the steps of its segment; a segment number of n or more is
    refused.

    Differences: none known.

    Source: ours [derived].

    >>> spread_segments(torch.tensor([[5.0, 7.0]]), torch.tensor([[0, 0, 1, -1]]))
    tensor([[5., 5., 7., 0.]])
    """
    check.axes("spread_segments", "x", x, "b n")
    check.axes("spread_segments", "segment", segment, "b s")
    check.leading("spread_segments", "x", x, "segment", segment, 1)
    if segment.numel() and int(segment.max()) >= x.shape[1]:
        raise DataError(
            f"spread_segments: segment holds {int(segment.max())}, but x has {x.shape[1]} segments (0 to "
            f"{x.shape[1] - 1}); -1 marks steps outside any segment"
        )
    if x.shape[1] == 0:
        return x.new_zeros(segment.shape)
    return torch.where(segment >= 0, x.gather(1, segment.long().clamp(min=0)), 0.0)


def pool_segments(
    x: Float[Tensor, "b n"], turn: Bool[Tensor, "b n"], *, how: str = "mean", empty: float = math.nan
) -> Float[Tensor, "b"]:
    """One value for a row from the values of its segments.

    Formula: mean, min, sum, prod or last of `x_{i,j}` over the j with `turn_{i,j}`.

    Args:
        x: one value for each segment (step scores), shape (b n).
        turn: which segments exist, shape (b n).
        how: "mean", "min", "sum", "prod" or "last".
        empty: value of a row without segments; NaN leaves it missing.

    Returns:
        Shape (b), unit of x (for "prod", its power).

    Degenerate cases: a row without segments gets `empty`; a row with a missing value in an existing segment
    (for "last", in the last one) is missing.

    Differences: implementations that pad step scores with -99 or 0 must mask them; here what lies outside
    `turn` is never read.

    Source: step aggregates of process reward models, as named in PROF's release [code].

    >>> x, turn = torch.tensor([[0.5, 0.25, 9.0]]), torch.tensor([[True, True, False]])
    >>> [round(float(pool_segments(x, turn, how=how)), 3) for how in ("mean", "min", "sum", "prod", "last")]
    [0.375, 0.25, 0.75, 0.125, 0.25]
    """
    check.choice("pool_segments", "how", how, ("mean", "min", "sum", "prod", "last"))
    check.axes("pool_segments", "x", x, "b n")
    check.alike("pool_segments", "x", x, "turn", turn)
    if x.shape[1] == 0:
        return x.new_full(x.shape[:1], empty)
    n = turn.sum(1)
    if how == "last":
        place = torch.arange(x.shape[1], device=x.device)
        last = torch.where(turn, place, 0).amax(1, keepdim=True)
        pooled = x.gather(1, last).squeeze(1)
    elif how == "min":
        pooled = torch.where(turn, x, torch.inf).amin(1)
    elif how == "prod":
        pooled = torch.where(turn, x, 1.0).prod(1)
    else:
        wide = torch.where(turn, x, 0.0).double().sum(1)
        pooled = (wide if how == "sum" else wide / n).to(x.dtype)
    return torch.where(n > 0, pooled, empty)


def step_consistency(
    x: Float[Tensor, "b n"],
    turn: Bool[Tensor, "b n"],
    outcome: Float[Tensor, "b"],
    *,
    centre: float = 0.5,
    few: int = 2,
    many: int = 30,
    penalty: float = 10.0,
) -> Float[Tensor, "b"]:
    """How far the step scores of a row agree with its outcome (PROF).

    Formula: `c = mean_j 2 (x_j - centre) (2 outcome - 1) - penalty * 1[n < few or n > many]`, n = number of
    steps.

    Args:
        x: step scores in [0, 1] from a process reward model, shape (b n).
        turn: which steps exist, shape (b n).
        outcome: 0 or 1, shape (b).
        centre: score that counts as neither good nor bad.
        few: fewest steps without penalty.
        many: most steps without penalty.
        penalty: taken off rows with too few or too many steps, which a filter then drops first.

    Returns:
        Shape (b), in [-1 - penalty, 1]: high is right with good steps, or wrong with bad steps.

    Degenerate cases: no steps gives 0 minus the penalty; a missing score or outcome gives NaN; an outcome
    that is neither 0 nor 1 is refused.

    Differences: PROF's "both" script takes as centre the mean of all step scores of the batch; a filter
    ranks inside one outcome, where the centre shifts all alike, so the kept rows are the same.

    Source: PROF steps 1 and 2 [code].

    >>> x, turn = torch.tensor([[0.9, 0.9], [0.9, 0.9]]), torch.ones(2, 2, dtype=torch.bool)
    >>> step_consistency(x, turn, torch.tensor([1.0, 0.0]))
    tensor([ 0.8000, -0.8000])
    """
    check.axes("step_consistency", "x", x, "b n")
    check.alike("step_consistency", "x", x, "turn", turn)
    check.rows("step_consistency", x, "outcome", outcome)
    check.binary("step_consistency", "outcome", outcome)
    n = turn.sum(1)
    score = torch.where(n > 0, pool_segments(x, turn), centre).double()
    agreement = 2 * (score - centre) * (2 * outcome.double() - 1)
    return (agreement - penalty * ((n < few) | (n > many))).to(x.dtype)


def to_go(
    x: Float[Tensor, "b *e"], mask: Bool[Tensor, "b *e"], *, gamma: float = 1.0
) -> Float[Tensor, "b *e"]:
    """Discounted sum of what is still to come, this step included.

    Formula: `y_t = x_t + gamma * y_{t+1}` over the masked steps of the last axis, in their order.

    Args:
        x: reward of each step, shape (b s), or (b) for rows of one step.
        mask: steps that exist, shape of x. A hole (a tool's tokens) is stepped over: it neither discounts
            nor adds.
        gamma: discount for each step, in [0, 1].

    Returns:
        Shape of x, unit of x; 0 outside the mask.

    Degenerate cases: a row without masked steps is 0; a missing reward makes its step and all earlier ones
    missing; inf is refused.

    Differences: the returns of verl `reinforce_plus_plus`, without its whitening (`batch_zscore` does that).
    A scan in blocks instead of a loop over steps.

    Source: return of reinforcement learning [paper]; holes as in verl 0.9.1 [code].

    >>> to_go(torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool), gamma=0.5)
    tensor([[0.2500, 0.5000, 1.0000]])
    """
    check.between("to_go", "gamma", gamma, 0.0, 1.0)
    check.alike("to_go", "x", x, "mask", mask)
    flat, chosen = _steps(x), _steps(mask)
    sums = torch.empty_like(flat)
    for rows in scan.row_blocks(flat):
        plan = scan.layout(chosen[rows])
        sums[rows] = plan.unpack(scan.scan_missing("to_go", plan.pack(flat[rows].detach()), gamma))
    return sums.reshape(x.shape)


def _steps(x: Tensor) -> Tensor:
    """View [b *e] as rows of steps: the last axis, or a single step for [b]."""
    return x[:, None] if x.dim() == 1 else x.reshape(x.shape[:-1].numel(), x.shape[-1])


def increments(
    x: Float[Tensor, "b *e"], mask: Bool[Tensor, "b *e"], *, first: str = "value"
) -> Float[Tensor, "b *e"]:
    """Change of a value from the masked step before to this one.

    Formula: `y_t = x_t - x_{t'}`, t' = the masked step before t on the last axis.

    Args:
        x: value after each step (progress, potential, step score), shape (b s), or (b) for rows of one step.
        mask: steps that exist, shape of x; holes are stepped over.
        first: what the first masked step gets: "value" (x itself, so that the changes sum to the last value)
            or "zero".

    Returns:
        Shape of x, unit of x; 0 outside the mask.

    Degenerate cases: a row without masked steps is 0; a missing value makes its own change and the next one
    missing.

    Differences: none known.

    Source: ours [derived].

    >>> increments(torch.tensor([[0.25, 0.75, 0.5]]), torch.ones(1, 3, dtype=torch.bool))
    tensor([[ 0.2500,  0.5000, -0.2500]])
    """
    check.choice("increments", "first", first, ("value", "zero"))
    check.alike("increments", "x", x, "mask", mask)
    flat, chosen = _steps(x), _steps(mask)
    place = torch.arange(flat.shape[1], device=x.device)
    before = torch.full_like(chosen, -1, dtype=torch.long)
    if flat.shape[1] > 1:
        before[:, 1:] = torch.where(chosen, place, -1).cummax(1).values[:, :-1]
    past = flat.gather(1, before.clamp(min=0)) if flat.shape[1] else flat
    start = torch.zeros_like(flat) if first == "value" else flat
    change = flat - torch.where(before >= 0, past, start)
    return torch.where(chosen, change, 0.0).reshape(x.shape)


def values_after(x: Float[Tensor, "b s"], last: Float[Tensor, "b"]) -> Float[Tensor, "b s"]:
    """Value of the state after each step, from the values before the steps and that of the end.

    Formula: `y_t = x_{t+1}`, and `y_T = last`. `y - x` is the gain of each step; gains sum to `last - x_1`.

    Args:
        x: value of the state before each step, shape (b s).
        last: value after the last step, shape (b), unit of x.

    Returns:
        Shape (b s), unit of x.

    Degenerate cases: one step gives `last`; missing values stay missing where they are used.

    Differences: all steps are taken to exist, as in denoising; ragged rows have `increments`.

    Source: DenseGRPO [paper].

    >>> values_after(torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([1.0]))
    tensor([[0.5000, 0.2500, 1.0000]])
    """
    check.axes("values_after", "x", x, "b s")
    check.rows("values_after", x, "last", last)
    return torch.cat([x[:, 1:], last[:, None].to(x.dtype)], dim=1)[:, : x.shape[1]]


def gae(
    rewards: Float[Tensor, "b s"],
    values: Float[Tensor, "b s"],
    mask: Bool[Tensor, "b s"],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> GAE:
    """Generalised advantage estimation: a weighted mean of the n-step advantages of a critic.

    Formula: `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, `returns_t = A_t +
    V_t`, over the masked steps in their order; V past the last masked step is 0.

    Args:
        rewards: reward of each step, shape (b s).
        values: critic's value before each step, unit of rewards, shape (b s).
        mask: steps the policy chose, shape (b s); holes (a tool's tokens) are stepped over.
        gamma: discount for each step, in [0, 1].
        lam: 1 is the Monte-Carlo return minus the value, 0 the one-step error; in [0, 1].

    Returns:
        `advantage` and `returns`, shape (b s), unit of rewards, not whitened, without graph; 0 outside the
        mask.

    Degenerate cases: a row without masked steps is 0; a missing reward or value makes its step and all
    earlier ones missing; inf is refused. A truncated rollout counts as ended (nothing is added for what it
    might have earned).

    Differences: verl's `gae` whitens the advantage over tokens afterwards (`batch_zscore` with `mask`,
    `eps=1e-8, eps_at="var"`) and leaves numbers outside the mask. A scan in blocks instead of a loop over
    steps, float32 for float32 with sums across blocks in float64.

    Source: GAE [paper]; holes as in verl 0.9.1 [code].

    >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    >>> gae(rewards, values, torch.ones(1, 3, dtype=torch.bool)).advantage
    tensor([[0.5000, 0.4000, 0.3000]])
    >>> gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), lam=0.0).advantage
    tensor([[0.1000, 0.1000, 0.3000]])
    """
    check.between("gae", "gamma", gamma, 0.0, 1.0)
    check.between("gae", "lam", lam, 0.0, 1.0)
    check.axes("gae", "rewards", rewards, "b s")
    check.alike("gae", "rewards", rewards, "values", values)
    check.alike("gae", "rewards", rewards, "mask", mask)
    advantage, returns = torch.empty_like(rewards), torch.empty_like(rewards)
    for rows in scan.row_blocks(mask):
        plan = scan.layout(mask[rows])
        value = plan.pack(values[rows].detach())
        delta = plan.pack(rewards[rows].detach()).sub_(value)
        delta[:, :-1].add_(value[:, 1:], alpha=gamma)
        gain = scan.scan_missing("gae", delta, gamma * lam)
        advantage[rows] = plan.unpack(gain)
        returns[rows] = plan.unpack(value.add_(gain))
    return GAE(advantage, returns)


def potential_shaping(
    x: Float[Tensor, "b s"], mask: Bool[Tensor, "b s"], *, gamma: float = 1.0, terminal: float = 0.0
) -> Float[Tensor, "b s"]:
    """Reward for moving to a better state that leaves the best policy unchanged.

    Formula: `F_t = gamma * x_{t'} - x_t`, t' = the next masked step; past the last one, `terminal` stands
    for x.

    Args:
        x: potential of the state before each step, shape (b s).
        mask: steps that exist, shape (b s); holes are stepped over.
        gamma: discount of the task, in [0, 1].
        terminal: potential after the last step. Only a constant (0) keeps the best policy unchanged.

    Returns:
        Shape (b s), unit of x; 0 outside the mask. With gamma 1 a row sums to `terminal - x_first`.

    Degenerate cases: a row without masked steps is 0; a missing potential makes its own shaping and the one
    before missing.

    Differences: implementations that leave out the last step's `-x` change what is optimal.

    Source: Ng, Harada and Russell [paper].

    >>> potential_shaping(torch.tensor([[0.0, 0.5, 0.75]]), torch.ones(1, 3, dtype=torch.bool))
    tensor([[ 0.5000,  0.2500, -0.7500]])
    """
    check.between("potential_shaping", "gamma", gamma, 0.0, 1.0)
    check.axes("potential_shaping", "x", x, "b s")
    check.alike("potential_shaping", "x", x, "mask", mask)
    steps = x.shape[1]
    after = torch.full_like(mask, steps, dtype=torch.long)
    if steps > 1:
        place = torch.where(mask, torch.arange(steps, device=x.device), steps)
        after[:, :-1] = place.flip(1).cummin(1).values.flip(1)[:, 1:]
    padded = torch.nn.functional.pad(x, (0, 1), value=terminal)
    return torch.where(mask, gamma * padded.gather(1, after) - x, 0.0)
