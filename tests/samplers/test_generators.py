"""Samplers of generators: masks and windows, branches of a deterministic path, values of states, calibrated noise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from concordant.core.errors import ConfigError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels import values_after
from concordant.policies.flow import FlowPlan, FlowPolicy
from concordant.samplers import Ask, Balance, Branches, Completions, Denoise
from concordant.samplers.base import Scored
from concordant.samplers.completions import previews_of
from tests.policies.test_flow_policy import TASKS, Net, Task

STEPS = 6


def brightness(table: Table) -> Scored:
    """A linear reward of the image."""
    values = torch.tensor([float(image.mean()) for image in table.fields["image"]])
    return Scored(table.with_columns({"bright": ("b", values)}), table.rows)


def sign(table: Table) -> Scored:
    values = torch.tensor([float(image[0, 0, 0]) for image in table.fields["image"]])
    return Scored(table.with_columns({"bright": ("b", values)}), table.rows)


def ask(size: int, tasks: Any = TASKS) -> Ask:
    def draw(count: int) -> list[Task]:
        return [Task(100 + i, str(i % 3), {"label": i % 3}) for i in range(count)]

    return Ask(tasks, FlowPlan(size), None, draw)


def drawn(
    sampler: Any, size: int, policy: FlowPolicy | None = None, score: Callable[[Table], Scored] = brightness
) -> Any:
    return sampler(ask(size), policy or FlowPolicy(Net()), score, Rng(3), sampler.init())


def test_cost_counts_network_evaluations_images_and_reward_calls() -> None:
    got = drawn(Denoise(STEPS), 4)
    assert (got.cost.evaluations, got.cost.rollouts, got.cost.reward_calls) == (12 * STEPS, 12, 12)
    guided = drawn(Denoise(STEPS), 4, FlowPolicy(Net(), guidance=2.0))
    assert guided.cost.evaluations == 2 * 12 * STEPS


def test_a_share_of_the_steps_trains_drawn_by_row() -> None:
    rows = drawn(Denoise(10, fraction=0.6), 4).rows
    assert rows["mask"].sum(1).tolist() == [5] * 12  # floor(.6 * 9)
    assert not bool(rows["mask"][:, -1].any())
    assert len({tuple(row) for row in rows["mask"].tolist()}) > 6
    assert rows["trainable"].sum(1).tolist() == [9] * 12


def test_the_window_slides_and_rolls_back() -> None:
    sampler = Denoise(STEPS, window=2, every=3, same_noise=True)
    firsts = [sampler.plan(4, tables, Rng(0)).window[0] for tables in range(18)]  # type: ignore[index]
    assert firsts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 0, 0, 0]
    state = {"tables": 6}
    got = sampler(ask(4), FlowPolicy(Net()), brightness, Rng(3), state)
    assert got.rows["mask"][0].tolist() == [False, False, True, True, False, False]
    assert got.state == {"tables": 7}
    assert got.cost.evaluations == 3 * 2 + 12 * 4


@pytest.mark.parametrize("grouping", ["seed", "prompt"])
def test_branches_differ_from_the_ode_at_one_step_only(grouping: Any) -> None:
    policy = FlowPolicy(Net())
    got = drawn(Branches(STEPS, branches=3, grouping=grouping), 6, policy)
    rows, every = got.rows, torch.arange(18)
    at = rows["mask"].long().argmax(1)
    assert rows["mask"].sum(1).tolist() == [1] * 18
    assert int(at.max()) < STEPS - 1
    seeds = rows["seed"].reshape(3, 2, 3)
    assert seeds.unique().tolist() == list(range(6))
    assert bool((seeds == seeds[..., :1]).all())
    whole = at.reshape(3, 2, 3) if grouping == "seed" else at.reshape(3, 1, 6)
    assert bool((whole == whole[..., :1]).all())
    expected = rows["seed"] if grouping == "seed" else rows["task"] - 7
    assert rows["group"].equal(expected)
    # the state before the step is the ODE's, bit for bit
    flat = policy.schedule.steps(FlowPlan(1, STEPS, noise=0.0))
    with torch.no_grad():
        condition = policy.encode(rows.fields["prompt"])
        path = policy.integrate(policy.start(rows["seed"], Rng(3)), condition, flat)
        assert rows["latent"][every, at].equal(path.states[every, at]) or torch.allclose(
            rows["latent"][every, at], path.states[every, at], atol=1e-6
        )
        # and the end is the ODE from the state after it
        later = torch.arange(STEPS) > at[:, None]
        end = policy.integrate(rows["next_latent"][every, at], condition, flat, on=later, trace=False)
    torch.testing.assert_close(rows["sample"], end.states[:, -1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(policy.score(rows)[every, at], rows["logp"][every, at], atol=1e-6, rtol=1e-5)


def test_branches_cost_the_way_to_the_step_once_and_its_velocity_is_shared() -> None:
    got = drawn(Branches(STEPS, branches=3), 6)
    at = got.rows["mask"].long().argmax(1)
    trunk = int((at[::3] + 1).sum())
    assert got.cost.evaluations == trunk + int((STEPS - 1 - at).sum())


def test_branch_rewards_vary_by_what_the_step_does_to_a_linear_reward() -> None:
    class Constant(Net):
        def forward(self, x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

        def decode(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 4, 4, 1)

    got = drawn(Branches(STEPS, branches=2000), 2000, FlowPolicy(Constant()), sign)
    rows = got.rows.take(got.rows["group"] == 0)
    k = int(rows["mask"][0].long().argmax())
    assert float(rows["bright"].std()) == pytest.approx(float(rows["std"][0, k]), rel=0.06)


@pytest.mark.parametrize("steps", [0, 1, 2, 99])
def test_values_of_a_deterministic_path_are_equal_and_gains_telescope(steps: int) -> None:
    policy = FlowPolicy(Net())
    sampler = Completions(Denoise(STEPS, last="train"), ("bright",), steps)
    got = drawn(sampler, 4, policy)
    before, last = got.rows["bright_before"], got.rows["bright"]
    gains = values_after(before, last) - before
    torch.testing.assert_close(gains.sum(1), last - before[:, 0], atol=1e-6, rtol=0)
    full = sum(min(STEPS - k, steps or STEPS) for k in range(STEPS))
    assert got.cost.evaluations == 12 * (STEPS + full)
    assert got.cost.reward_calls == 12 * (1 + STEPS)


def test_completions_of_the_remaining_steps_continue_the_ode() -> None:
    policy = FlowPolicy(Net())
    rows = policy.sample(TASKS, FlowPlan(2, STEPS, noise=1e-8, last="train"), Rng(0))
    images = previews_of(policy, rows, Denoise(STEPS), 0).fields["image"]
    for row in range(6):
        for k in range(STEPS):
            assert abs(images[row * STEPS + k] - rows.fields["image"][row]).max() < 1e-5
    coarse = previews_of(policy, rows, Denoise(STEPS), STEPS).fields["image"]
    assert max(abs(a - b).max() for a, b in zip(coarse, images, strict=True)) == 0.0


def test_one_step_completions_are_the_clean_estimate() -> None:
    policy = FlowPolicy(Net())
    rows = policy.sample(TASKS, FlowPlan(2, STEPS), Rng(0))
    preview = previews_of(policy, rows, Denoise(STEPS), 1).fields["image"]
    x, s = rows["latent"][0, 2], rows["sigma"][0, 2]
    with torch.no_grad():
        v = policy.predict(x[None], s[None], policy.encode(["0"]))[0]
    clean = ((x - s * v + 1) / 2).clamp(0, 1).reshape(4, 4, 1)
    torch.testing.assert_close(torch.from_numpy(preview[2]), clean, atol=1e-6, rtol=1e-5)


def test_calibration_happens_once_and_its_placebo_has_the_same_mean_noise() -> None:
    found = {}
    for flat in (False, True):
        sampler = Completions(
            Denoise(STEPS, last="train"), ("bright",), balance=Balance(rounds=3, trajectories=8, flat=flat)
        )
        policy = FlowPolicy(Net())
        got = drawn(sampler, 4, policy)
        noise = got.state["noise"]
        assert len(noise) == STEPS
        assert got.cost.rollouts == 12 + 3 * 8
        again = sampler(ask(4), policy, brightness, Rng(3).at(1), got.state)
        assert again.state["noise"] == noise
        assert again.cost.rollouts == 12
        length = 1 / STEPS
        got_g = got.rows["std"][0] / math.sqrt(length)
        torch.testing.assert_close(got_g, torch.tensor(noise), atol=1e-5, rtol=1e-5)
        found[flat] = torch.tensor(noise)
    assert float(found[True].mean()) == pytest.approx(float(found[False].mean()), rel=1e-6)
    assert float((found[True] - found[False]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Branches(branches=1), "at least 2"),
        (lambda: Branches(noise=0.0), "without noise"),
        (lambda: Branches(steps=1), "no room"),
        (lambda: Branches(grouping="group"), "'seed' or 'prompt'"),
        (lambda: Denoise(fraction=0.0), "fraction"),
        (lambda: Denoise(window=11), "window"),
        (lambda: Completions(rewards=()), "names of the rewards"),
        (lambda: Completions(rewards=("a",), steps=-1), "at least 1"),
        (lambda: drawn(Branches(branches=5), 6), "multiple of the 5 branches"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()
