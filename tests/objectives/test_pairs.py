"""Objectives over pairs: values at the start, gradients against a full graph, pieces, and what is left out."""

import math
from typing import Any

import pytest
import torch

from concordant.core.chain import Context, chain, part, stage
from concordant.core.errors import ChainError
from concordant.core.seeds import Progress, Rng
from concordant.core.table import Table
from concordant.kernels import best_worst_pairs, pair_gaps, reward_difference_loss, same_group_pairs
from concordant.loops.update import backward, mini_batches
from concordant.objectives import DenoisingPreference, RewardDifference
from concordant.policies.flow import FlowPlan, FlowPolicy
from concordant.scoring import DenoisingErrors
from concordant.scoring.probes import Models
from tests.policies.test_flow_policy import TASKS, Net

ENDS = {"left": "pairs.left", "right": "pairs.right"}
ALL_PAIRS = chain(pairs=stage(same_group_pairs), gap=stage(pair_gaps, x="reward", **ENDS))
BEST = chain(pairs=stage(best_worst_pairs, x="reward"))


def generations(
    policy: FlowPolicy, method: Any = ALL_PAIRS, moved: float = 0.02, last: float | None = None
) -> Table:
    """Rows of a policy that has since moved, with rewards, pairs and what a reference says."""
    table = policy.sample(TASKS, FlowPlan(4, 5), Rng(1))
    reference = policy.snapshot()
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.add_(
                moved * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            )
    reward = torch.tensor([float(image[0, 0, 0]) for image in table.fields["image"]])
    if last is not None:
        reward[-1] = last
    table = table.with_columns({"reward": ("b", reward), "ref_logp": ("b s", reference.score(table) - 0.01)})
    probe = DenoisingErrors(3)
    said = probe(Models(policy, reference), table)
    table = table.with_columns({name: (probe.columns[name], values) for name, values in said.items()})
    return method.apply(table, Context(Rng(), Progress(), method.init()))[0]


def gradient(policy: FlowPolicy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters()])  # type: ignore[union-attr]


def naive(policy: FlowPolicy, table: Table, beta: float, clip: float | None) -> torch.Tensor:
    """The loss of the whole table, pair by pair, from one graph."""
    now = policy.rescore(table)["logp"] - table["ref_logp"]
    then = table["logp"] - table["ref_logp"]
    losses = []
    for a in range(table.rows):
        for b in range(a + 1, table.rows):
            if table["group"][a] != table["group"][b]:
                continue
            gap = float(table["reward"][a] - table["reward"][b]) / beta
            plain = ((now[a] - now[b]).sum() - gap) ** 2
            if clip is None:
                losses.append(plain)
                continue
            near = [torch.clamp(now[i], then[i] - clip, then[i] + clip) for i in (a, b)]
            losses.append(torch.maximum(plain, ((near[0] - near[1]).sum() - gap) ** 2))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("clip", [None, 1e-3, 0.05])
@pytest.mark.parametrize("micro", [20, 10_000])
def test_the_gradient_is_that_of_a_full_graph_in_pieces_and_recomputed(
    clip: float | None, micro: int
) -> None:
    policy, lean = FlowPolicy(Net()), FlowPolicy(Net(), recompute=7)
    table, _ = generations(policy), generations(lean)
    loss = naive(policy, table, 2.0, clip)
    loss.backward()
    objective = RewardDifference(loss_part=part(reward_difference_loss, beta=2.0, clip=clip))
    log = backward(lean, objective, objective.prepare(table, lean.reads), micro)
    assert log["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(gradient(lean), gradient(policy), rtol=2e-4, atol=1e-6)


def test_at_the_reference_the_loss_is_the_squared_target_and_a_shift_of_all_rewards_changes_nothing() -> None:
    policy = FlowPolicy(Net())
    table = generations(policy, moved=0.0)
    objective = RewardDifference(loss_part=part(reward_difference_loss, beta=2.0))
    table = table.with_columns({"ref_logp": ("b s", table["logp"])})
    value = objective.loss(objective.prepare(table, policy.reads), policy).value
    assert float(value.detach()) == pytest.approx(float((table["gap"] / 2.0).square().mean()), rel=1e-5)


def test_a_missing_reward_takes_its_pairs_out() -> None:
    policy = FlowPolicy(Net())
    work = RewardDifference().prepare(generations(policy, last=math.nan), policy.reads)
    assert len(work.left) == 6 + 6 + 3
    assert float(work.pairs["weight"].sum()) == pytest.approx(1.0)
    assert 11 not in work.active().tolist()


def test_a_group_of_one_image_has_no_pair_and_no_force() -> None:
    policy = FlowPolicy(Net())
    table = generations(policy, BEST).take(torch.tensor([0, 4, 8]))
    objective = DenoisingPreference()
    log = backward(policy, objective, objective.prepare(table, policy.reads), 100)
    assert (log["loss"], log["rows_active"]) == (0.0, 0.0)


def test_preference_starts_at_log_two_and_its_step_lowers_the_error_of_the_better_image() -> None:
    policy = FlowPolicy(Net())
    table = generations(policy, BEST, moved=0.0)
    objective = DenoisingPreference(beta=10.0)
    work = objective.prepare(table, policy.reads)
    log = backward(policy, objective, work, 10_000)
    assert log["loss"] == pytest.approx(math.log(2.0), abs=1e-6)

    def margin() -> float:
        a = work.arrays
        worse = (
            policy.errors(a["sample"], table.fields["prompt"], a["draw_time"], a["draw_noise"])
            - a["ref_error"]
        )
        return float((worse[work.right] - worse[work.left]).mean().detach())

    assert margin() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.sub_(0.05 * parameter.grad)  # type: ignore[operator]
    assert margin() > 1e-4


def test_images_of_a_group_share_times_and_noises() -> None:
    policy = FlowPolicy(Net())
    table = policy.sample(TASKS, FlowPlan(4, 5), Rng(1))
    made = DenoisingErrors(3)(Models(policy, policy.snapshot(), rng=Rng(2)), table)
    noise = made["draw_noise"].reshape(3, 4, 3, -1)
    assert bool((noise == noise[:, :1]).all())
    assert float((noise[0, 0] - noise[1, 0]).abs().min()) > 0
    other = DenoisingErrors(3)(Models(policy, policy.snapshot(), rng=Rng(2).at(1)), table)
    assert float((made["draw_time"] - other["draw_time"]).abs().min()) > 0


def test_mini_batches_never_split_a_group() -> None:
    policy = FlowPolicy(Net())
    table = generations(policy)
    batches = mini_batches(table, 2, Rng(0), "group")
    assert sum(batch.rows for batch in batches) == 12
    assert sum(len(batch["pairs.left"]) for batch in batches) == 18
    for batch in batches:
        assert batch["group"][batch["pairs.left"]].equal(batch["group"][batch["pairs.right"]])


def test_columns_that_nothing_makes_are_named() -> None:
    with pytest.raises(ChainError, match=r"'pairs.left'"):
        RewardDifference().check({"gap": ("p",), "logp": ("b", "s"), "ref_logp": ("b", "s")})
