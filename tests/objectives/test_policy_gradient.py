"""The objective: exact savings, denominators, streams, and what missing advantages do."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from concordant.core.chain import part
from concordant.core.errors import ChainError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels import (
    cispo_term,
    clip_term,
    dual_clip_term,
    fixed_length,
    kl_k3,
    on_policy_ratio,
    plain_term,
    rollout_mean,
    rollout_sum,
    sequence_ratio,
    token_mean,
    token_ratio,
    whole_sequence_ratio,
)
from concordant.loops.update import backward, mini_batches
from concordant.objectives import PolicyGradient, Stream
from concordant.objectives.policy_gradient import micro_batches

VOCABULARY, STEPS = 5, 6


class Bigram:
    """A policy with a real graph: logits depend on the previous token."""

    def __init__(self, seed: int = 0) -> None:
        self.weight = torch.randn(
            VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        self.weight.requires_grad_(True)
        self.rows_seen = 0

    def rescore(self, table: Table, wants: object = None) -> dict[str, Tensor]:
        return {"logp": self.logp(table)}

    def logp(self, table: Table) -> Tensor:
        tokens, mask = table["tokens"].clamp(min=0), table["mask"]
        self.rows_seen += len(tokens)
        previous = torch.cat([table["prompt_tokens"][:, -1:], tokens[:, :-1]], dim=1)
        logp = self.weight.log_softmax(-1)[previous].gather(-1, tokens[..., None])[..., 0]
        return torch.where(mask, logp, 0.0)


def rollouts(seed: int = 0, groups: int = 4, size: int = 6) -> Table:
    """Short rows over a small vocabulary, so that many are equal; some groups without any advantage."""
    g = torch.Generator().manual_seed(seed)
    rows = groups * size
    group = torch.arange(groups).repeat_interleave(size)
    lengths = torch.randint(1, 3, (rows,), generator=g)
    mask = torch.arange(STEPS) < lengths[:, None]
    tokens = torch.where(mask, torch.randint(0, 2, (rows, STEPS), generator=g), -1)
    value = (tokens[:, 0] + tokens[:, 1].clamp(min=0)).double()
    value = value - value.reshape(groups, size).mean(1).repeat_interleave(size)
    value[group == 1] = 0.0
    old = -torch.rand(VOCABULARY, VOCABULARY, generator=g, dtype=torch.float64)
    logp = torch.where(mask, old[group[:, None] % VOCABULARY, tokens.clamp(min=0)], 0.0)
    return Table.of(
        {
            "id": ("b", torch.arange(rows)),
            "group": ("b", group),
            "prompt_tokens": ("b q", (group % VOCABULARY)[:, None]),
            "prompt_mask": ("b q", torch.ones(rows, 1, dtype=torch.bool)),
            "tokens": ("b s", tokens),
            "mask": ("b s", mask),
            "logp": ("b s", logp),
            "ref_logp": ("b s", logp - 0.1 * mask),
            "keep": ("b", torch.ones(rows, dtype=torch.bool)),
            "advantage": ("b s", torch.where(mask, value[:, None], 0.0)),
            "weight": ("b", torch.rand(groups, generator=g)[group].double()),
        }
    )


def naive(policy: Bigram, objective: PolicyGradient, table: Table) -> Tensor:
    """Loss over all rows at once."""
    work = objective.prepare(table)
    return objective.loss(work, policy).value


OBJECTIVES = {
    "clip": PolicyGradient(),
    "dual": PolicyGradient(term=part(dual_clip_term), aggregate=part(token_mean)),
    "cispo": PolicyGradient(term=part(cispo_term), aggregate=part(fixed_length, length=10)),
    "plain": PolicyGradient(ratio=part(on_policy_ratio), term=part(plain_term)),
    "gspo": PolicyGradient(ratio=part(sequence_ratio)),
    "rloo": PolicyGradient(ratio=part(whole_sequence_ratio), aggregate=part(rollout_sum)),
    "weighted": PolicyGradient(streams=(Stream(weight="weight"), Stream())),
    "kl": PolicyGradient(kl=part(kl_k3), kl_weight=0.1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("micro", [3, 8, 10_000])
def test_skipping_merging_and_micro_batches_leave_the_gradient_unchanged(name: str, micro: int) -> None:
    table, full, lean = rollouts(), Bigram(), Bigram()
    loss = naive(full, OBJECTIVES[name], table)
    loss.backward()
    log = backward(lean, OBJECTIVES[name], OBJECTIVES[name].prepare(table), micro)
    torch.testing.assert_close(lean.weight.grad, full.weight.grad, rtol=1e-6, atol=1e-8)
    assert log["loss"] == pytest.approx(float(loss.detach()), abs=1e-7)
    assert lean.rows_seen < full.rows_seen, "equal rows were not merged"
    if name != "kl":
        assert log["rows_active"] <= 18, "a group without advantage took a pass"


def test_rows_that_differ_anywhere_are_not_merged() -> None:
    table = rollouts()
    work = OBJECTIVES["clip"].prepare(table)
    unique = len(
        {
            (int(p), tuple(t.tolist()), float(a[0]))
            for p, t, a in zip(table["prompt_tokens"], table["tokens"], table["advantage"], strict=True)
        }
    )
    assert work.merged().mask.shape[0] == unique
    total = work.weights.sum()
    assert work.merged().weights.sum() == pytest.approx(float(total))


def test_keep_false_equals_leaving_the_row_out_of_the_loss() -> None:
    table = rollouts()
    out = torch.zeros(table.rows, dtype=torch.bool)
    out[[0, 7, 20]] = True
    for name, objective in OBJECTIVES.items():
        a, b = Bigram(), Bigram()
        naive(a, objective, table.with_columns({"keep": ("b", ~out)})).backward()
        naive(b, objective, table.take(~out)).backward()
        torch.testing.assert_close(a.weight.grad, b.weight.grad, msg=name)


def test_a_missing_advantage_neither_trains_nor_counts() -> None:
    table = rollouts()
    gone = table["advantage"].clone()
    gone[3] = torch.nan
    a, b = Bigram(), Bigram()
    naive(a, PolicyGradient(), table.with_columns({"advantage": ("b s", gone)})).backward()
    naive(b, PolicyGradient(), table.take(torch.arange(table.rows) != 3)).backward()
    torch.testing.assert_close(a.weight.grad, b.weight.grad)


def test_weight_zero_leaves_the_numerator_only() -> None:
    table = rollouts()
    weight = torch.ones(table.rows, dtype=torch.float64)
    weight[5:] = 0.0
    stream = replace(PolicyGradient(), streams=(Stream(weight="weight"),))
    work = stream.prepare(table.with_columns({"weight": ("b", weight)}))
    assert work.active().max() < 5
    torch.testing.assert_close(work.weights[0, :5], PolicyGradient().prepare(table).weights[0, :5])


def test_where_restricts_numerator_and_denominator() -> None:
    table = rollouts()
    where = torch.arange(table.rows) < 6
    objective = replace(PolicyGradient(), streams=(Stream(where="half"),))
    a, b = Bigram(), Bigram()
    naive(a, objective, table.with_columns({"half": ("b", where)})).backward()
    naive(b, PolicyGradient(), table.take(where)).backward()
    torch.testing.assert_close(a.weight.grad, b.weight.grad)


def test_a_blend_of_streams_is_the_sum_of_their_losses() -> None:
    table = rollouts().with_columns({"rest": ("b", 1 - rollouts()["weight"])})
    both = replace(PolicyGradient(), streams=(Stream(weight="weight"), Stream(weight="rest")))
    a, b = Bigram(), Bigram()
    assert float(naive(a, both, table)) == pytest.approx(float(naive(b, PolicyGradient(), table)))


def test_all_tied_gives_loss_and_gradient_zero_without_a_forward_pass() -> None:
    table = rollouts()
    table = table.with_columns({"advantage": ("b s", torch.zeros_like(table["advantage"]))})
    policy = Bigram()
    log = backward(policy, PolicyGradient(), PolicyGradient().prepare(table), 64)
    assert policy.rows_seen == 0
    assert policy.weight.grad is None
    assert (log["loss"], log["rows_forward"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("term", "ratio"), itertools.product((clip_term, dual_clip_term, plain_term), (token_ratio,))
)
def test_the_first_step_is_reinforce(term: Any, ratio: Any) -> None:
    table, policy, plain = rollouts(), Bigram(), Bigram()
    table = table.with_columns({"logp": ("b s", policy.logp(table).detach())})
    naive(policy, PolicyGradient(ratio=part(ratio), term=part(term)), table).backward()
    weights = rollout_mean(table["mask"], table["mask"].any(1)).double()
    (-(weights * table["advantage"]) * plain.logp(table)).sum().backward()
    torch.testing.assert_close(policy.weight.grad, plain.weight.grad, rtol=1e-6, atol=1e-9)


def test_streams_over_unknown_columns_are_refused_by_name() -> None:
    with pytest.raises(ChainError, match="did you mean 'advantage'"):
        PolicyGradient(streams=(Stream("advantag"),)).check({"advantage": ("b", "s")})


def test_micro_batches_cover_every_row_once_within_the_limit() -> None:
    lengths = torch.tensor([5, 1, 9, 3, 3, 20])
    pieces = micro_batches(lengths, 10)
    assert sorted(torch.cat(list(pieces)).tolist()) == list(range(6))
    assert all(len(p) == 1 or int(lengths[p].max()) * len(p) <= 10 for p in pieces)


def test_mini_batches_follow_row_ids() -> None:
    table = rollouts()
    order = torch.randperm(table.rows, generator=torch.Generator().manual_seed(1))
    parts = [sorted(p["id"].tolist()) for p in mini_batches(table, 3, Rng(1))]
    shuffled = [sorted(p["id"].tolist()) for p in mini_batches(table.take(order), 3, Rng(1))]
    assert parts == shuffled
    assert sorted(itertools.chain(*parts)) == list(range(table.rows))
