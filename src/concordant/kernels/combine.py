"""Arithmetic on signals: sums, gates, limits. Row by row unless a kernel takes `valid`."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.errors import ConfigError, DataError
from concordant.kernels import _cells as cells
from concordant.kernels import _validate as check


def weighted_sum(
    x: Float[Tensor, "k b *e"],
    *,
    weights: tuple[float, ...] = (),
    missing: str = "drop",
) -> Float[Tensor, "b *e"]:
    """Weighted sum of stacked signals, with a chosen treatment of missing ones.

    Formula: `sum_k w_k x_k`; "renormalise" multiplies the sum over the present ones by `sum_k |w_k|` over
    the same sum of the present ones.

    Args:
        x: k signals, shape (k b *e); NaN is missing.
        weights: one for each signal; () weighs all with 1. A signal with weight 0 is not looked at.
        missing: "drop" (one missing signal makes the sum missing), "renormalise", or "neutral" (a missing
            signal adds 0, which is neutral for centred signals and a penalty or gift for raw rewards).

    Returns:
        Shape (b *e), unit of the signals; keeps the graph.

    Degenerate cases: all signals missing gives NaN under each policy; no signals, or a wrong number of
    weights, is refused.

    Differences: TRL is `missing="neutral"`; so is TRL's GDPO. NVlabs' GDPO turns missing into 0 before
    normalising.

    Source: [code] TRL 1.16; policies [derived].

    >>> x = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    >>> weighted_sum(x), weighted_sum(x, missing="neutral"), weighted_sum(x, missing="renormalise")
    (tensor([2., nan]), tensor([2., 2.]), tensor([2., 4.]))
    """
    check.axes("weighted_sum", "x", x, "k b *e")
    check.choice("weighted_sum", "missing", missing, ("drop", "renormalise", "neutral"))
    if x.shape[0] == 0:
        raise DataError("weighted_sum: x stacks no signal; name at least one column")
    if weights and len(weights) != x.shape[0]:
        raise ConfigError(
            f"weighted_sum: {len(weights)} weights {weights} for {x.shape[0]} signals; give one for each, "
            "or () to weigh all with 1"
        )
    w = torch.tensor(weights or [1.0] * x.shape[0], dtype=torch.float64, device=x.device)
    w = w.reshape([-1] + [1] * (x.dim() - 1))
    used = (w != 0).expand(x.shape)
    there = ~x.isnan() & used
    added = (torch.where(there, x, 0.0).double() * w).sum(0)
    if missing == "drop":
        gone = (used & ~there).any(0)
    else:
        gone = ~there.any(0) & used.any(0)
        if missing == "renormalise":
            mass = torch.where(there, w.abs(), 0.0).sum(0)
            added = added * (w.abs().sum() / torch.where(mass > 0, mass, 1.0))
    return added.masked_fill(gone, torch.nan).to(x.dtype)


def multiply_gate(
    x: Float[Tensor, "b *e"],
    gate: Float[Tensor, "b"],
    *,
    at_least: float = 1.0,
    strict: bool = False,
) -> Float[Tensor, "b *e"]:
    """Count x only where the gate is open (GDPO's conditioned reward).

    Formula: `x_i * 1[gate_i >= at_least]`; `strict` asks for `>`.

    Args:
        x: the signal that is conditioned, shape (b *e).
        gate: the signal that opens the gate, shape (b).
        at_least: threshold, unit of gate, compared in the dtype of gate.
        strict: whether the threshold itself is closed.

    Returns:
        Shape (b *e), unit of x; keeps the graph of x.

    Degenerate cases: a missing gate, or a missing x, gives NaN.

    Differences: none known.

    Source: GDPO conditioned reward [paper].

    >>> multiply_gate(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]))
    tensor([1., 0., 0.])
    """
    check.rows("multiply_gate", x, "gate", gate)
    opened = gate > at_least if strict else gate >= at_least
    factor = torch.where(gate.isnan(), torch.nan, opened.to(x.dtype)).to(x.dtype)
    return x * factor.reshape([-1] + [1] * (x.dim() - 1))


def clip_values(
    x: Float[Tensor, "b *e"], *, low: float | None = None, high: float | None = None
) -> Float[Tensor, "b *e"]:
    """Limit values from below and above.

    Formula: `min(max(x, low), high)`.

    Args:
        x: values, shape (b *e).
        low: lower limit, unit of x; None for none.
        high: upper limit, unit of x; None for none.

    Returns:
        Shape (b *e), unit of x; no gradient outside the limits.

    Degenerate cases: NaN stays NaN; no limit at all, or low > high, is refused.

    Differences: none known.

    Source: TRL `reward_clip_range` [code].

    >>> clip_values(torch.tensor([-3.0, 0.5, 3.0]), low=-1.0, high=1.0)
    tensor([-1.0000,  0.5000,  1.0000])
    """
    if low is None and high is None:
        raise ConfigError("clip_values: give low, high or both")
    if low is not None and high is not None and not low <= high:
        raise ConfigError(f"clip_values: low {low!r} must not exceed high {high!r}")
    return x.clamp(low, high)


def negate(x: Bool[Tensor, "b *e"]) -> Bool[Tensor, "b *e"]:
    """Turn a yes into a no.

    Formula: `not x`.

    Args:
        x: answers, shape (b *e).

    Returns:
        Shape (b *e).

    Degenerate cases: none.

    Differences: none known.

    Source: logic.

    >>> negate(torch.tensor([True, False]))
    tensor([False,  True])
    """
    return ~x


def complement(x: Float[Tensor, "b *e"]) -> Float[Tensor, "b *e"]:
    """The rest to 1: the weight of the other stream.

    Formula: `1 - x`.

    Args:
        x: shares, shape (b *e).

    Returns:
        Shape (b *e).

    Degenerate cases: NaN stays NaN.

    Differences: none known.

    Source: COPO step 6 [code].

    >>> complement(torch.tensor([0.25, 1.0]))
    tensor([0.7500, 0.0000])
    """
    return 1 - x


def entropy_gate(x: Float[Tensor, "b"], *, slope: float = 5.0, threshold: float = 1.0) -> Float[Tensor, "b"]:
    """Weight of the local term by the entropy of the answers (COPO): high entropy explores, low entropy
    converges.

    Formula: `w = 1 / (1 + exp(-slope * (x - threshold)))`.

    Args:
        x: entropy of the group's answers, bits, shape (b).
        slope: steepness, per bit.
        threshold: entropy at which the weight is 1/2, bits.

    Returns:
        Shape (b), in (0, 1); no graph.

    Degenerate cases: NaN stays NaN.

    Differences: the release uses slope 5 and threshold 1 in most scripts, slope 20 in the 3B one.

    Source: COPO step 6 [paper, code].

    >>> entropy_gate(torch.tensor([0.0, 1.0]))
    tensor([0.0067, 0.5000])
    """
    check.axes("entropy_gate", "x", x, "b")
    return torch.sigmoid(slope * (x.detach() - threshold))


def nonzero_gate(x: Float[Tensor, "b *e"], by: Float[Tensor, "b"]) -> Float[Tensor, "b *e"]:
    """Keep x where another column is not exactly 0.

    Formula: `x_i * 1[by_i != 0]`.

    Args:
        x: the weight that is forced to 0, shape (b *e).
        by: local advantage (COPO `soft-with-forced`) or reward (COPO `soft-with-zero`), shape (b).

    Returns:
        Shape (b *e), unit of x.

    Degenerate cases: a missing `by`, or a missing x, gives NaN.

    Differences: the comparison is exact because ties give exactly 0.0 in the group kernels; a release that
    normalises in float32 can miss ties here.

    Source: COPO [code].

    >>> nonzero_gate(torch.tensor([0.4, 0.4]), torch.tensor([0.0, -1.5]))
    tensor([0.0000, 0.4000])
    """
    check.rows("nonzero_gate", x, "by", by)
    factor = torch.where(by.isnan(), torch.nan, (by != 0).to(x.dtype)).to(x.dtype)
    return x * factor.reshape([-1] + [1] * (x.dim() - 1))


def set_consistency(
    accuracy: Float[Tensor, "b"],
    entropy: Float[Tensor, "b"],
    group: Int[Tensor, "b"],
    valid: Bool[Tensor, "b"] | None = None,
    *,
    use_entropy: bool = False,
) -> Float[Tensor, "b"]:
    """Reward of a whole group: its accuracy, discounted by the disagreement of its answers (COPO).

    Formula: `R = accuracy * (1 - lambda_n * entropy)`, `lambda_n = (1 - 1/n) / log2 n` with n judged
    members, so that the factor runs from 1 (one answer) to 1/n (all different). Without `use_entropy`, `R =
    accuracy`.

    Args:
        accuracy: mean reward of the group (`group_mean`), shape (b).
        entropy: entropy of its answers in bits (`answer_entropy`), shape (b).
        group: which rows belong to one prompt, shape (b).
        valid: which rows are judged, shape (b); None judges all that are not NaN.
        use_entropy: whether disagreement counts.

    Returns:
        Shape (b), unit of accuracy, constant inside a group if the inputs are.

    Degenerate cases: a group of one has factor 1; not judged gives NaN.

    Differences: the release divides by log2 of the configured group size; here n is the number of judged
    members.

    Source: COPO step 3 [code]; the released final script has the flag off.

    >>> ones = torch.ones(6)
    >>> set_consistency(ones, ones, torch.zeros(6, dtype=torch.long), use_entropy=True)[:1]
    tensor([0.6776])
    """
    check.axes("set_consistency", "accuracy", accuracy, "b")
    check.alike("set_consistency", "accuracy", accuracy, "entropy", entropy)
    known = ~entropy.isnan() if valid is None else valid & ~entropy.isnan()
    judged = cells.judge("set_consistency", accuracy, group, known, name="accuracy")
    if not use_entropy:
        return judged.put(judged.x)
    n = cells.count(judged.cell, judged.cells).double()
    strength = torch.where(n > 1, (1 - 1 / n) / n.clamp(min=2).log2(), 0.0).index_select(0, judged.cell)
    return judged.put(judged.x * (1 - strength * judged.take(entropy.detach()).double()))
