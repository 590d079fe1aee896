"""Our kernels, with the options their docstrings name, against the expressions of TRL 1.16's trainers.

TRL computes advantages and losses inside methods of its trainers, so only `nanstd` can be called; the rest is written
down here anew.
"""

import pytest
import torch

from concordant.kernels import (
    batch_zscore,
    cispo_term,
    clip_term,
    fixed_length,
    group_center,
    group_loo,
    group_zscore,
    kl_k3,
    rollout_mean,
    sequence_ratio,
    spread,
    token_mean,
    token_ratio,
    weighted_sum,
    whole_sequence_ratio,
)

nanstd = pytest.importorskip("trl.trainer.utils", reason="trl is not installed").nanstd

G, NAN = 4, float("nan")
GROUP = torch.arange(12) // G
MASK = torch.arange(5) < torch.tensor([5, 1, 2, 3, 4, 5, 5, 2, 1, 3, 4, 2])[:, None]


def agree(got, want, rtol=2e-4, atol=2e-6):
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def table(holes):
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    if holes:
        x[0, 1] = x[1, 6] = NAN
        x[:, 9] = NAN
    return x


def trl_sum_then_normalise(per_function, weights, scale):
    reward = (per_function * weights).nansum(1)
    reward[per_function.isnan().all(1)] = NAN
    advantage = reward - reward.view(-1, G).nanmean(1).repeat_interleave(G)
    if scale != "none":
        std = nanstd(reward.view(-1, G), dim=1).repeat_interleave(G) if scale == "group" else nanstd(reward)
        advantage = advantage / (std + 1e-4)
    return advantage.nan_to_num(nan=0.0)


def trl_normalise_then_sum(per_function, weights):
    grouped = per_function.view(-1, G, per_function.shape[1])
    z = (grouped - grouped.nanmean(1, keepdim=True)) / (nanstd(grouped, dim=1, keepdim=True) + 1e-4)
    reward = (z.view(per_function.shape) * weights).nansum(1)
    reward[per_function.isnan().all(1)] = NAN
    return ((reward - reward.nanmean()) / (nanstd(reward) + 1e-4)).nan_to_num(nan=0.0)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_sum_then_normalise(scale, holes):
    x, weights = table(holes), (1.0, 0.5)
    total = weighted_sum(x, weights=weights, missing="neutral")
    ours = group_center(total, GROUP) if scale == "none" else group_zscore(total, GROUP, scale=scale)
    agree(ours.nan_to_num(nan=0.0), trl_sum_then_normalise(x.T.contiguous(), torch.tensor(weights), scale))


@pytest.mark.parametrize("holes", [False, True])
def test_normalise_then_sum(holes):
    x, weights = table(holes), (1.0, 0.5)
    z = torch.stack([group_zscore(r, GROUP) for r in x])
    ours = batch_zscore(weighted_sum(z, weights=weights, missing="neutral"))
    agree(ours.nan_to_num(nan=0.0), trl_normalise_then_sum(x.T.contiguous(), torch.tensor(weights)))


def test_rloo():
    x = table(False)[0]
    grouped = x.view(-1, G)
    agree(group_loo(x, GROUP), x - ((grouped.sum(1, keepdim=True) - grouped) / (G - 1)).reshape(-1))


def logps():
    gen = torch.Generator().manual_seed(3)
    old = -torch.rand(12, 5, generator=gen) * 2
    return (
        old,
        (old + 0.5 * torch.randn(12, 5, generator=gen)).requires_grad_(),
        torch.randn(12, generator=gen),
    )


def same_loss(ours, theirs, logp):
    agree(ours, theirs)
    agree(*(torch.autograd.grad(loss, logp, retain_graph=True)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("delta", [None, 1.5])
def test_grpo_dapo_and_dr_grpo_losses(delta):
    old, logp, advantage = logps()
    rho = (logp - old).exp()
    first = rho if delta is None else rho.clamp(max=delta)
    per_token = -torch.min(first * advantage[:, None], rho.clamp(0.8, 1.28) * advantage[:, None])
    ours = clip_term(
        token_ratio(logp, old, MASK, limit=None), spread(advantage, MASK), high=0.28, ceiling=delta
    )
    m = MASK.float()
    same_loss((rollout_mean(MASK) * ours).sum(), ((per_token * m).sum(1) / m.sum(1)).mean(), logp)
    same_loss((token_mean(MASK) * ours).sum(), (per_token * m).sum() / m.sum(), logp)
    same_loss((fixed_length(MASK, length=5) * ours).sum(), (per_token * m).sum() / (12 * 5), logp)


def test_sequence_level_ratio_without_clipping_has_the_same_gradient():
    old, logp, advantage = logps()
    m = MASK.float()
    log = ((logp - old) * m).sum(1) / m.sum(1)
    theirs = -(log.exp() * advantage).mean()
    ours = clip_term(sequence_ratio(logp, old, MASK), spread(advantage, MASK), low=1.0, high=1e6)
    same_loss((rollout_mean(MASK) * ours).sum(), theirs, logp)


def test_rloo_loss_over_whole_sequences():
    old, logp, advantage = logps()
    rho = ((logp - old) * MASK).sum(1).exp()
    theirs = -torch.min(rho * advantage, rho.clamp(0.8, 1.2) * advantage).mean()
    ours = clip_term(whole_sequence_ratio(logp, old, MASK), spread(advantage, MASK))
    same_loss((rollout_mean(MASK) * ours).sum(), theirs, logp)


def test_cispo_limit_is_the_ratio_itself_there_and_a_distance_here():
    old, logp, advantage = logps()
    weight = (logp - old).exp().clamp(max=1.5).detach()
    theirs = (-weight * advantage[:, None] * logp * MASK).sum() / MASK.sum()
    ours = cispo_term(token_ratio(logp, old, MASK, limit=None), logp, spread(advantage, MASK), high=0.5)
    same_loss((token_mean(MASK) * ours).sum(), theirs, logp)


def test_k3():
    ref, logp, _ = logps()
    agree(kl_k3(logp, ref), (ref - logp).exp() - (ref - logp) - 1)


# --- where we differ on purpose --------------------------------------------------------------------------------------


def test_a_tie_in_float32():
    x = torch.full((7,), 0.35)
    theirs = (x - x.nanmean()) / (nanstd(x) + 1e-4)
    assert theirs.abs().max() > 1e-5, "TRL's float32 mean no longer misses this tie: update the docstrings"
    assert group_zscore(x, torch.zeros(7, dtype=torch.long)).tolist() == [0.0] * 7


def test_a_lone_judged_member():
    x = torch.tensor([2.0, NAN])
    theirs = ((x - x.nanmean()) / (nanstd(x) + 1e-4)).nan_to_num(nan=0.0)
    assert theirs.tolist() == [0.0, 0.0]
    ours = group_zscore(x, torch.zeros(2, dtype=torch.long))
    assert ours[0] == 0.0 and ours[1].isnan(), "missing stays visible; the objective leaves the row out"


def test_a_fully_masked_row_is_counted_there_and_not_here():
    mask = torch.tensor([[True, True], [False, False]])
    loss, m = torch.ones(2, 2), mask.float()
    assert ((loss * m).sum(1) / m.sum(1).clamp(min=1.0)).mean().item() == 0.5
    assert (rollout_mean(mask) * loss).sum().item() == 1.0
