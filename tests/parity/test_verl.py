"""Our kernels, with the options their docstrings name, against the functions of the installed verl."""

import numpy as np
import pytest
import torch

from concordant.kernels import (
    batch_zscore,
    cispo_term,
    clip_term,
    dual_clip_term,
    fixed_length,
    gae,
    group_center,
    group_loo,
    group_zscore,
    kl_k1,
    kl_k2,
    kl_k3,
    rollout_mean,
    rollout_sum,
    sequence_ratio,
    spread,
    tied_groups,
    to_go,
    token_mean,
    token_ratio,
    weighted_sum,
)

algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
ActorConfig = pytest.importorskip("verl.workers.config").ActorConfig

GROUP = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])  # the last one alone
LENGTH = torch.tensor([3, 6, 1, 2, 4, 5, 5, 1, 6, 3])
MASK = torch.arange(6) < LENGTH[:, None]
WHITEN = {"eps": 1e-8, "eps_at": "var"}


def rewards(seed=0):
    return torch.randn(10, generator=torch.Generator().manual_seed(seed))


def at_end(x):
    """verl's layout: the reward of a rollout on its last token."""
    return torch.zeros(MASK.shape).scatter_(1, (LENGTH - 1)[:, None], x[:, None])


def agree(got, want, rtol=1e-4, atol=2e-6):
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def estimate(name, x, **more):
    return getattr(algos, f"compute_{name}_outcome_advantage")(
        token_level_rewards=at_end(x), response_mask=MASK.float(), index=GROUP.numpy(), **more
    )[0]


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
@pytest.mark.parametrize("by_std", [True, False])
def test_grpo(name, by_std):
    x = rewards()
    z = (
        group_zscore(x, GROUP, eps=1e-6, singleton="raw")
        if by_std
        else group_center(x, GROUP, singleton="raw")
    )
    agree(spread(z, MASK), estimate(name, x, norm_adv_by_std_in_grpo=by_std))


def test_rloo_and_its_vectorised_twin_differ_only_on_singletons():
    x = rewards()
    agree(spread(group_loo(x, GROUP, singleton="raw"), MASK), estimate("rloo", x))
    agree(spread(group_loo(x, GROUP), MASK), estimate("rloo_vectorized", x))


def test_opo():
    x = rewards()
    agree(spread(group_center(x, GROUP, weight=LENGTH.float(), singleton="raw"), MASK), estimate("opo", x))


def test_gdpo():
    a, b = rewards(1), rewards(2)
    widths = {"prompts": torch.zeros(10, 2), "attention_mask": torch.cat([torch.ones(10, 2), MASK], 1).long()}
    theirs = estimate(
        "gdpo",
        a,
        config={"gdpo_reward_keys": ["a", "b"], "gdpo_reward_weights": [1.0, 0.5]},
        batch=widths,
        non_tensor_batch={"a": a.numpy(), "b": b.numpy()},
    )
    z = torch.stack([group_zscore(r, GROUP, eps=1e-6, singleton="raw") for r in (a, b)])
    total = weighted_sum(z, weights=(1.0, 0.5))
    agree(batch_zscore(spread(total, MASK), mask=MASK, **WHITEN), theirs)


@pytest.mark.parametrize(
    "mask", [MASK, MASK & (torch.arange(60).reshape(10, 6) % 3 != 1)], ids=["prefix", "holes"]
)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_gae(mask, gamma, lam):
    gen = torch.Generator().manual_seed(5)
    r, v = torch.randn(10, 6, generator=gen), torch.randn(10, 6, generator=gen)
    advantage, returns = algos.compute_gae_advantage_return(r, v, mask.float(), gamma, lam)
    ours = gae(r, v, mask, gamma=gamma, lam=lam)
    agree(batch_zscore(ours.advantage, mask=mask, **WHITEN), advantage * mask, atol=1e-5)
    agree(ours.returns, returns * mask, atol=1e-5)


def test_reinforce_plus_plus():
    class Config:
        gamma = 0.9

    r = torch.randn(10, 6, generator=torch.Generator().manual_seed(6))
    for mask in (MASK, MASK & (torch.arange(60).reshape(10, 6) % 3 != 1)):
        advantage, returns = algos.compute_reinforce_plus_plus_outcome_advantage(r, mask.float(), Config())
        ours = to_go(r, mask, gamma=0.9)
        agree(ours, returns)
        agree(batch_zscore(ours, mask=mask, **WHITEN), advantage)


def config(**options):
    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)


def logps(seed=7):
    gen = torch.Generator().manual_seed(seed)
    old = -torch.rand(10, 6, generator=gen) * 3
    return (
        old,
        (old + 0.6 * torch.randn(10, 6, generator=gen)).requires_grad_(),
        torch.randn(10, 6, generator=gen),
    )


MODES = {
    "token-mean": token_mean(MASK),
    "seq-mean-token-mean": rollout_mean(MASK),
    "seq-mean-token-sum": rollout_sum(MASK),
    "seq-mean-token-sum-norm": fixed_length(MASK, length=6),
}


@pytest.mark.parametrize("mode", MODES)
def test_aggregation(mode):
    loss = torch.randn(10, 6, generator=torch.Generator().manual_seed(8))
    agree((MODES[mode] * loss).sum(), algos.agg_loss(loss, MASK.float(), mode))


def test_all_masked_rows_are_not_counted_by_either():
    mask = MASK.clone()
    mask[3] = False
    loss = torch.ones(10, 6)
    agree((rollout_mean(mask) * loss).sum(), algos.agg_loss(loss, mask.float(), "seq-mean-token-mean"))


@pytest.mark.parametrize("mode", MODES)
def test_vanilla_loss_is_the_dual_clip(mode):
    old, logp, advantage = logps()
    theirs, _ = algos.compute_policy_loss_vanilla(
        old, logp, advantage, MASK.float(), mode, config(clip_ratio_low=0.2, clip_ratio_high=0.28)
    )
    term = dual_clip_term(token_ratio(logp, old, MASK), advantage, low=0.2, high=0.28, bound=3.0)
    ours = (MODES[mode] * term).sum()
    agree(ours, theirs)
    agree(*(torch.autograd.grad(loss, logp)[0] for loss in (ours, theirs)))


def test_gspo_loss():
    old, logp, advantage = logps()
    theirs, _ = algos.compute_policy_loss_gspo(
        old,
        logp,
        advantage,
        MASK.float(),
        "seq-mean-token-mean",
        config(clip_ratio_low=0.03, clip_ratio_high=0.04),
    )
    ours = (
        rollout_mean(MASK) * clip_term(sequence_ratio(logp, old, MASK), advantage, low=0.03, high=0.04)
    ).sum()
    agree(ours, theirs)
    agree(*(torch.autograd.grad(loss, logp)[0] for loss in (ours, theirs)))


def test_cispo_loss():
    old, logp, advantage = logps()
    theirs, _ = algos.compute_policy_loss_cispo(
        old, logp, advantage, MASK.float(), "token-mean", config(clip_ratio_low=0.2, clip_ratio_high=0.2)
    )
    term = cispo_term(token_ratio(logp, old, MASK), logp, advantage, low=0.2, high=0.2)
    ours = (token_mean(MASK) * term).sum()
    agree(ours, theirs)
    agree(*(torch.autograd.grad(loss, logp)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("k1", kl_k1),
        ("k2", kl_k2),
        ("k3", lambda a, b: kl_k3(a, b, limit=20.0, bound=10.0)),
    ],
)
def test_divergences(name, ours):
    ref, logp, _ = logps()
    for scale in (1.0, 8.0):
        agree(ours(logp * scale, ref), algos.kl_penalty(logp * scale, ref, name))


# --- where we differ on purpose --------------------------------------------------------------------------------------


def test_a_tie_in_float32_is_a_signal_there_and_none_here():
    group, mask = np.zeros(7, dtype=int), torch.ones(7, 2)
    worst = 0.0
    for value in (0.35, 0.1, 0.7, 1 / 3, 123.456):
        x = torch.full((7,), value)
        reward = torch.stack([x, torch.zeros(7)], 1)
        theirs = algos.compute_grpo_outcome_advantage(reward, mask, group)[0]
        worst = max(worst, float(theirs.abs().max()))
        assert group_zscore(x, torch.zeros(7, dtype=torch.long), eps=1e-6).tolist() == [0.0] * 7
        assert tied_groups(x, torch.zeros(7, dtype=torch.long)).all()
    assert worst > 0.01, "verl's float32 mean no longer misses a tie: update the docstrings"


def test_a_singleton_keeps_its_raw_reward_there_and_has_no_advantage_here():
    x = torch.tensor([2.0])
    theirs = algos.compute_grpo_outcome_advantage(x[:, None], torch.ones(1, 1), np.zeros(1, dtype=int))[0]
    assert theirs.item() == pytest.approx(2.0, rel=1e-5)
    assert group_zscore(x, torch.tensor([0])).item() == 0.0


def test_a_missing_score_spoils_its_group_there_and_nobody_here():
    x, group = torch.tensor([1.0, float("nan"), 0.0]), torch.zeros(3, dtype=torch.long)
    theirs = algos.compute_grpo_outcome_advantage(x[:, None].clone(), torch.ones(3, 1), group.numpy())[0]
    assert theirs.isnan().all()
    z = group_zscore(x, group, eps=0.0)
    agree(z[[0, 2]], torch.tensor([0.5**0.5, -(0.5**0.5)]))
    assert z[1].isnan()


def test_whitening_one_token_fails_there_and_is_zero_here():
    functional = pytest.importorskip("verl.utils.torch_functional")
    one = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="mask is one"):
        functional.masked_whiten(torch.ones(1, 2), one)
    assert batch_zscore(torch.ones(1, 2), mask=one).tolist() == [[0.0, 0.0]]
