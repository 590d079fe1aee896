"""Which members of a group, or which groups, a method treats apart."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check


def tied_groups(
    x: Float[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
) -> Bool[Tensor, "b"]:
    """Whether all judged members of the row's group have the same value, so that comparing them teaches
    nothing.

    Formula: `max_g x == min_g x`.

    Args:
        x: values to compare, shape (b).
        group: which rows are comparable, shape (b).
        valid: which rows are judged, shape (b); None judges all that are not NaN.

    Returns:
        Shape (b), True in tied groups.

    Degenerate cases: a group of one is tied; not judged gives False.

    Differences: verl's DAPO filter asks for `std > 0` in float32, which seven copies of 0.35 pass, and keeps
    groups of one; TRL logs `isclose(std, 0)`.

    Source: DAPO dynamic sampling [paper, code]; the test by extremes is ours [derived].

    >>> tied_groups(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([4, 4, 2, 2]))
    tensor([ True,  True, False, False])
    """
    judged = cells.judge("tied_groups", x, group, valid)
    check.axes("tied_groups", "x", x, "b")
    low = cells.least(judged.x, judged.cell, judged.cells)
    tied = low == cells.most(judged.x, judged.cell, judged.cells)
    return judged.put(tied.index_select(0, judged.cell), False, torch.bool)


def no_positive_groups(
    x: Float[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
) -> Bool[Tensor, "b"]:
    """Whether no judged member of the row's group has a value above 0 (SAGE's unresolved prompts).

    Formula: `max_g x <= 0`.

    Args:
        x: rewards, shape (b); success is above 0.
        group: which rows belong to one prompt, shape (b).
        valid: which rows are judged, shape (b); None judges all that are not NaN.

    Returns:
        Shape (b), True in groups without success. Unlike `tied_groups`, an all-correct group is not marked.

    Degenerate cases: not judged gives False, so a group of which nothing is known is not marked.

    Differences: SAGE's release counts a missing score as 0.

    Source: SAGE [paper, code].

    >>> no_positive_groups(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([4, 4, 2, 2]))
    tensor([ True,  True, False, False])
    """
    judged = cells.judge("no_positive_groups", x, group, valid)
    check.axes("no_positive_groups", "x", x, "b")
    barren = cells.most(judged.x, judged.cell, judged.cells) <= 0
    return judged.put(barren.index_select(0, judged.cell), False, torch.bool)


def accurate_set(
    correct: Float[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
    *,
    floor: float = 0.1,
    slack: float = 1e-9,
) -> Bool[Tensor, "b"]:
    """The members of a group that are right, and at least as right as its mean (GRPO-CARE's accurate set).

    Formula: `S = {i : correct_i > floor and correct_i >= mean_g correct - slack}`.

    Args:
        correct: accuracy reward in [0, 1], shape (b).
        group: which rows belong to one prompt, shape (b).
        valid: which rows are judged, shape (b); None judges all that are not NaN.
        floor: accuracy that must be exceeded.
        slack: tolerance of the comparison with the mean, for rounding.

    Returns:
        Shape (b).

    Degenerate cases: nobody above the floor gives an empty set; not judged gives False.

    Differences: the release compares without slack.

    Source: GRPO-CARE [code]; slack [derived].

    >>> accurate_set(torch.tensor([1.0, 0.6, 0.05, 0.0]), torch.tensor([4, 4, 4, 4]))
    tensor([ True,  True, False, False])
    """
    judged = cells.judge("accurate_set", correct, group, valid, name="correct")
    check.axes("accurate_set", "correct", correct, "b")
    mean = cells.means(judged.x, judged.cell, judged.cells)[1].index_select(0, judged.cell)
    chosen = judged.take(correct > floor) & (judged.x >= mean - slack)
    return judged.put(chosen, False, torch.bool)


def selected_bonus(
    x: Float[Tensor, "b"],
    reward: Float[Tensor, "b"],
    select: Bool[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
    *,
    coefficient: float = 0.5,
    margin: float = 0.0,
    cap: float | None = 0.95,
    slack: float = 1e-9,
) -> Float[Tensor, "b"]:
    """A bonus, in proportion to the reward, for selected members whose value reaches the mean of the
    selected ones.

    Formula: `p = min(x, cap)`, `mu_g = mean of p over the selected members of g`,
    `bonus_i = coefficient * reward_i * 1[selected_i and p_i >= mu_g - margin - slack]`.

    Args:
        x: value that earns the bonus (answer likelihood in [0, 1]), shape (b).
        reward: reward that the bonus scales with, shape (b).
        select: members that may earn it (`accurate_set`), shape (b).
        group: which rows belong to one prompt, shape (b).
        valid: which rows are judged, shape (b); None judges all whose x and reward are not NaN.
        coefficient: bonus as a share of the reward.
        margin: how far below the mean still earns it, unit of x.
        cap: ceiling of x before anything else; None for no ceiling.
        slack: tolerance of the comparison, for rounding (the float64 mean of six copies of 0.95 exceeds
            0.95).

    Returns:
        Shape (b), unit of reward; 0 where no bonus is earned.

    Degenerate cases: nobody selected gives 0; one selected member earns it; not judged gives NaN.

    Differences: the release has no slack, and takes the statistics over the local batch instead of the group.

    Source: GRPO-CARE [paper, code]; slack [derived].

    >>> selected_bonus(torch.tensor([0.9, 0.6, 0.99, 0.99]), torch.tensor([1.0, 1.0, 1.0, 0.0]),
    ...                torch.tensor([True, True, True, False]), torch.tensor([5, 5, 5, 5]))
    tensor([0.5000, 0.0000, 0.5000, 0.0000])
    """
    check.axes("selected_bonus", "x", x, "b")
    check.alike("selected_bonus", "x", x, "reward", reward)
    check.alike("selected_bonus", "x", x, "select", select)
    known = ~reward.isnan() if valid is None else valid & ~reward.isnan()
    judged = cells.judge("selected_bonus", x, group, known)
    p = judged.x if cap is None else judged.x.clamp(max=cap)
    chosen = judged.take(select)
    mean = cells.means(p[chosen], judged.cell[chosen], judged.cells)[1].index_select(0, judged.cell)
    earned = chosen & (p >= mean - margin - slack)
    bonus = coefficient * judged.take(reward.detach()).double()
    return judged.put(torch.where(earned, bonus, 0.0))
