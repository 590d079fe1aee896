"""How far the policy is from a reference, step by step: estimates for tokens, exact for Gaussian steps. These keep
the graph of `logp` and `mean`.

With `d = ref_logp - logp`. Check: for p = (0.4, 0.6) and reference (0.5, 0.5) the divergence is 0.0201355,
which k1 and k3 give in expectation; k2 gives 0.0199310.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.kernels import _validate as check


def _gap(kernel: str, logp: Tensor, ref_logp: Tensor, limit: float | None) -> Tensor:
    check.alike(kernel, "logp", logp, "ref_logp", ref_logp)
    d = ref_logp.detach() - logp
    return d if limit is None else d.clamp(-limit, limit)


def kl_k1(
    logp: Float[Tensor, "b s"], ref_logp: Float[Tensor, "b s"], *, limit: float | None = None
) -> Float[Tensor, "b s"]:
    """Log-ratio estimate: unbiased, can be negative.

    Formula: `-d = logp - ref_logp`, d clamped to +-limit.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).
        ref_logp: log-probability under the reference, shape (b s).
        limit: largest |d|; None for none.

    Returns:
        Nats for each token, shape (b s). As a loss its expected gradient is 0: use it inside rewards.

    Degenerate cases: NaN stays NaN.

    Differences: verl "kl" / "k1"; the penalty in TRL's RLOO reward.

    Source: Schulman, "Approximating KL divergence".

    >>> kl_k1(torch.tensor([[0.4]]).log(), torch.tensor([[0.5]]).log())
    tensor([[-0.2231]])
    """
    return -_gap("kl_k1", logp, ref_logp, limit)


def kl_k2(
    logp: Float[Tensor, "b s"], ref_logp: Float[Tensor, "b s"], *, limit: float | None = None
) -> Float[Tensor, "b s"]:
    """Squared log-ratio estimate: never negative, biased value, unbiased gradient on samples of the policy.

    Formula: `d^2 / 2`, d clamped to +-limit.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).
        ref_logp: log-probability under the reference, shape (b s).
        limit: largest |d|, beyond it there is no gradient; None for none.

    Returns:
        Nats for each token, shape (b s).

    Degenerate cases: NaN stays NaN.

    Differences: verl "mse" / "k2".

    Source: Schulman, "Approximating KL divergence".

    >>> kl_k2(torch.tensor([[0.4]]).log(), torch.tensor([[0.5]]).log())
    tensor([[0.0249]])
    """
    return _gap("kl_k2", logp, ref_logp, limit).square() / 2


def kl_k3(
    logp: Float[Tensor, "b s"],
    ref_logp: Float[Tensor, "b s"],
    *,
    limit: float | None = None,
    bound: float | None = None,
) -> Float[Tensor, "b s"]:
    """Low-variance estimate: unbiased, never negative; its gradient is not that of the divergence.

    Formula: `exp(d) - d - 1`, d clamped to +-limit, the result to at most bound.

    Args:
        logp: log-probability under the policy, with graph, shape (b s).
        ref_logp: log-probability under the reference, shape (b s).
        limit: largest |d|; None for none. A clamp stops an explosion where the policy is far below the
            reference, and also the gradient there.
        bound: largest result, nats; None for none.

    Returns:
        Nats for each token, shape (b s).

    Degenerate cases: NaN stays NaN; without limit a large d overflows to inf.

    Differences: TRL's `beta` term is the default here; verl "low_var_kl" / "k3" is `limit=20, bound=10`.

    Source: Schulman, "Approximating KL divergence"; TRL 1.16, verl 0.9.1 [code].

    >>> kl_k3(torch.tensor([[0.4]]).log(), torch.tensor([[0.5]]).log())
    tensor([[0.0269]])
    """
    d = _gap("kl_k3", logp, ref_logp, limit)
    kl = torch.expm1(d) - d
    return kl if bound is None else kl.clamp(max=bound)


def gaussian_kl(
    mean: Float[Tensor, "b s d"],
    ref_mean: Float[Tensor, "b s d"],
    std: Float[Tensor, "b s"],
    sigma: Float[Tensor, "b s"] | None = None,
    sigma_next: Float[Tensor, "b s"] | None = None,
    *,
    exact: bool = False,
    reduce: str = "mean",
) -> Float[Tensor, "b s"]:
    """Divergence of two Gaussian steps with the same noise.

    Formula: `reduce_d (mean - ref_mean)^2 / (2 std^2)` if exact, else that times `|dt| = sigma - sigma_next`, which is
    `reduce_d (mean - ref_mean)^2 / (2 g^2)` for `std = g sqrt|dt|`.

    Args:
        mean: mean under the policy, with graph, shape (b s d).
        ref_mean: mean under the reference, shape (b s d).
        std: standard deviation of each step, shape (b s).
        sigma: noise before the step, shape (b s); needed unless exact.
        sigma_next: noise after the step, shape (b s); needed unless exact.
        exact: the divergence itself; False gives the loss of Flow-GRPO's code.
        reduce: "mean" or "sum" over the latent dimensions; "sum" is the true divergence.

    Returns:
        Nats (nats a dimension for "mean") if exact, shape (b s); never negative.

    Degenerate cases: a step without noise (std 0) gives 0 and no gradient; NaN stays NaN.

    Differences: the default is the code of Flow-GRPO, whose weight beta (.04, .01) belongs to it; its paper writes
    the divergence itself. Some code named DPOK has a categorical divergence over a batch of log-probabilities.

    Source: Flow-GRPO [code] (default), [paper] (exact); DPOK [paper] (exact).

    >>> one = torch.ones(1, 1)
    >>> gaussian_kl(one[None] * 0.5, one[None] * 0.0, one * 0.5, one * 0.75, one * 0.5)
    tensor([[0.1250]])
    """
    check.choice("gaussian_kl", "reduce", reduce, ("mean", "sum"))
    check.axes("gaussian_kl", "mean", mean, "b s d")
    check.alike("gaussian_kl", "mean", mean, "ref_mean", ref_mean)
    check.axes("gaussian_kl", "std", std, "b s")
    check.leading("gaussian_kl", "mean", mean, "std", std, 2)
    check.alike("gaussian_kl", "std", std, "sigma", sigma)
    check.alike("gaussian_kl", "std", std, "sigma_next", sigma_next)
    noisy = std != 0
    squares = torch.where(noisy[..., None], mean - ref_mean.detach(), 0.0).square()
    kl = squares.mean(-1) if reduce == "mean" else squares.sum(-1)
    kl = kl / (2 * torch.where(noisy, std, 1.0).square())
    if exact:
        return kl
    if sigma is None or sigma_next is None:
        raise ConfigError(
            "gaussian_kl: the divergence times |dt| needs sigma and sigma_next; give both, or set exact=True"
        )
    return kl * torch.where(noisy, sigma - sigma_next, 0.0)
