"""Likelihood of a span of tokens under a model."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from concordant.kernels import _validate as check


def span_likelihood(
    logp: Float[Tensor, "b s"],
    span: Bool[Tensor, "b s"],
    *,
    reduce: str = "geometric",
    cap: float | None = None,
    empty: float = 0.0,
) -> Float[Tensor, "b"]:
    """How likely a model finds the tokens of a span.

    Formula: "geometric" is `exp(mean_t logp_t)`, "product" is `exp(sum_t logp_t)`, "mean_logp" is `mean_t
    logp_t`, over the steps t of the span.

    Args:
        logp: log-probability of each token, natural logarithm, shape (b s).
        span: which tokens (the answer), shape (b s).
        reduce: "geometric", "product" or "mean_logp".
        cap: ceiling of the result, in its unit; None for none.
        empty: result of a row whose span is empty (it found no answer); NaN makes it missing.

    Returns:
        Shape (b): a probability, or a mean log-probability; keeps the graph.

    Degenerate cases: an empty span gives `empty`; NaN inside the span gives NaN, outside it is not read.

    Differences: GRPO-CARE's release divides by the length plus 1e-6, so that an empty span has likelihood 1,
    and its span holds the closing bracket of the tag; it caps at 0.95. The geometric mean does not punish
    length, the product does.

    Source: GRPO-CARE steps 1 and 2 [paper, code]; `empty` [derived].

    >>> logp = torch.tensor([[0.9, 0.4], [0.9, 0.9]]).log()
    >>> span_likelihood(logp, torch.tensor([[True, True], [False, False]]))
    tensor([0.6000, 0.0000])
    """
    check.choice("span_likelihood", "reduce", reduce, ("geometric", "product", "mean_logp"))
    check.axes("span_likelihood", "logp", logp, "b s")
    check.alike("span_likelihood", "logp", logp, "span", span)
    n = span.sum(1)
    value = torch.where(span, logp, 0.0).double().sum(1)
    if reduce != "product":
        value = value / n.clamp(min=1)
    if reduce != "mean_logp":
        value = value.exp()
    if cap is not None:
        value = value.clamp(max=cap)
    return torch.where(n > 0, value, empty).to(logp.dtype)
