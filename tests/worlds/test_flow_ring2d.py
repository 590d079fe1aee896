"""The ring: exact velocity against quadrature and known marginals; world, rewards and base."""

import math

import numpy as np
import pytest
import torch

import concordant.worlds as worlds
from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels.flow import flow_coefficients
from concordant.policies.flow import FlowPlan
from concordant.worlds.flow_ring2d import RingConfig, RingVelocity, RingWorld, exact_velocity
from concordant.worlds.flow_ring2d.meters import distance, posterior
from concordant.worlds.flow_ring2d.velocity import ANYWHERE, BOUND, SPREAD, centres, points, prompt_of

WORLD = RingWorld()
NAN = math.nan


# ---- the exact velocity --------------------------------------------------------------------------------------------


def by_quadrature(x, sigma, means, std, weights):
    """E[e | x] - E[x0 | x] by a sum over a fine grid of x0."""
    axis = np.linspace(-2.5, 2.5, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    prior = sum(
        w * np.exp(-((grid - m) ** 2).sum(1) / (2 * std**2)) for w, m in zip(weights, means, strict=True)
    )
    noise = (x - (1 - sigma) * grid) / sigma
    joint = prior * np.exp(-(noise**2).sum(1) / 2)
    return ((noise - grid) * joint[:, None]).sum(0) / joint.sum()


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("weights", [[1.0] * 8, [0.0, 0.0, 0.7, 0.0, 0.0, 0.3, 0.0, 0.0]])
def test_velocity_is_that_of_the_posterior(sigma, weights):
    for x in ([0.1, -0.4], [0.9, 0.8], [-1.5, 0.2]):
        got = exact_velocity(
            torch.tensor([x], dtype=torch.float64),
            torch.tensor([sigma]).double(),
            centres(),
            SPREAD,
            torch.tensor([weights]),
        )
        want = by_quadrature(np.array(x), sigma, centres().numpy(), SPREAD, weights)
        assert got[0].numpy() == pytest.approx(want, abs=1e-7)


def test_velocity_at_both_ends():
    x = torch.tensor([[0.3, -1.2], [2.0, 0.5]], dtype=torch.float64)
    at_noise = exact_velocity(x, torch.ones(2), centres(), SPREAD)
    assert torch.allclose(at_noise, x, atol=1e-12)  # the mean of the ring is 0
    assert torch.allclose(exact_velocity(x, torch.zeros(2), centres(), SPREAD), -x, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "noise", "want"),
    [("ode", 0.0, 0.99743), ("dance", 0.3, 0.99761), ("flow", 0.7, 1.00572), ("cps", 0.7, 0.72289)],
)
def test_final_variance_of_unit_gaussian_data(kind, noise, want):
    """With one component N(0, 1) the velocity is linear in x, so that variances can be followed step by step."""
    sigmas = torch.linspace(1.0, 0.0, 1001, dtype=torch.float64)
    one = torch.ones(1000, 1, dtype=torch.float64)
    slope = exact_velocity(one, sigmas[:-1], torch.zeros(1, 1), 1.0)[:, 0]
    steps = flow_coefficients(sigmas[:-1], sigmas[1:], noise, kind=kind, guard=float(sigmas[1]))
    variance = 1.0
    for k in range(1000):
        variance = float((steps.x[k] + steps.v[k] * slope[k]) ** 2 * variance + steps.std[k] ** 2)
    assert variance == pytest.approx(want, abs=5e-6)


def test_flow_keeps_the_marginals_of_gaussian_data_that_is_not_standard():
    sigmas = torch.linspace(1.0, 0.0, 2001, dtype=torch.float64)
    mean, std, variance = 1.5, 0.4, 1.0
    slope = exact_velocity(torch.ones(2000, 1).double(), sigmas[:-1], torch.zeros(1, 1), std)[:, 0]
    steps = flow_coefficients(sigmas[:-1], sigmas[1:], 0.3, kind="dance")
    for k in range(1000):  # to sigma .5
        variance = float((steps.x[k] + steps.v[k] * slope[k]) ** 2 * variance + steps.std[k] ** 2)
    assert variance == pytest.approx(0.25 * std**2 + 0.25, rel=5e-3)
    shifted = exact_velocity(torch.full((1, 1), 0.5 * mean), torch.tensor([0.5]), torch.tensor([[mean]]), std)
    assert shifted.item() == pytest.approx(
        -mean
    )  # at the mean of the marginal the velocity is minus the data's mean


def test_network_picks_the_component_and_has_nothing_to_train():
    network = RingVelocity()
    x, time = torch.randn(5, 2), torch.full((5,), 0.4)
    one = network(x, time, network.encode([prompt_of(2)] * 5))
    assert torch.allclose(one, exact_velocity(x, time, centres()[2:3], SPREAD), atol=1e-6)
    whole = network(x, time, network.encode([ANYWHERE] * 5))
    assert torch.equal(whole, network(x, time, network.null.expand(5, -1)))
    assert torch.allclose(whole, exact_velocity(x, time, centres(), SPREAD), atol=1e-6)
    assert [p.requires_grad for p in network.parameters()] == [False]
    with pytest.raises(DataError, match="a point of component 8"):
        network.encode([prompt_of(8)])
    with pytest.raises(DataError, match=r"shape \(n, 2\)"):
        network(torch.zeros(5, 3), time, network.null.expand(5, -1))


# ---- world ---------------------------------------------------------------------------------------------------------


def image_of(*places):
    x = torch.tensor(places, dtype=torch.float32)
    return list(RingVelocity().decode(x).numpy())


def test_images_show_points_and_keep_what_is_not_finite():
    x = torch.tensor([[0.5, -1.0], [3.0, 0.0], [NAN, 0.0], [math.inf, 0.0]])
    shown = RingVelocity().decode(x)
    assert shown.shape == (4, 1, 2, 1)
    assert points(shown[:2]).tolist() == [[0.5, -1.0], [BOUND, 0.0]]
    assert shown[2:, 0, 0, 0].isnan().all()
    assert not shown[2:, 0, 1, 0].isnan().any()


def test_rewards_by_hand():
    images = image_of((1.0, 0.0), (0.9, 0.0), (-1.0, 0.0), (NAN, 0.0))
    got = distance(image=images, component=[0, 0, 0, 0])
    assert got[:3] == pytest.approx([0.0, -0.1, -2.0], abs=1e-6)
    assert math.isnan(got[3])
    middle = image_of((math.cos(math.pi / 8), math.sin(math.pi / 8)))  # between components 0 and 1
    assert posterior(image=middle, component=[1]) == pytest.approx([0.5], abs=1e-4)
    with pytest.raises(DataError, match="shape"):
        distance(image=[np.zeros((2, 1, 1))], component=[0])


def test_evaluate_and_meters():
    table = Table.of(
        {"group": ("b", torch.tensor([0, 0, 1, 1]))},
        {"image": image_of((1, 0), (0, 1), (-1, 0), (NAN, 0)), "component": [0, 0, 4, 4]},
    )
    judged = WORLD.evaluate(table)
    assert judged["accuracy"] == [1.0, 0.0, 1.0, 0.0]
    assert judged["inside"] == [1.0, 0.0, 1.0, 0.0]
    assert judged["broken"] == [0.0, 0.0, 0.0, 1.0]
    assert judged["modes"] == [3 / 8]
    assert judged["distance"] == pytest.approx([0.0, -math.sqrt(2), 0.0], abs=1e-6)
    meters = WORLD.meters(table)
    assert meters["accuracy"] == 0.5
    assert meters["tied_groups"] == 0.5  # the second group has one judged row
    assert meters["spread_distance"] == pytest.approx(math.sqrt(2) / 4, abs=1e-6)


def test_lookup_options_and_tasks():
    assert worlds.get("flow/ring2d", {"model": "exact"}).config.model == "exact"
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        RingConfig(model="exacte")
    with pytest.raises(ConfigError, match="lora_rank"):
        WORLD.policy(lora=object())
    with pytest.raises(ConfigError, match="float32"):
        WORLD.policy(dtype="bfloat16")
    train = WORLD.tasks("train", 3, 5, 16)
    assert train[:8] == WORLD.tasks("train", 3, 5, 8)
    assert sorted(task.fields["component"] for task in train) == sorted([*range(8)] * 2)
    assert len({task.id for task in train}) == 8
    assert WORLD.tasks("test", 7, 7, 8) == WORLD.tasks("test", count=8)
    with pytest.raises(ConfigError, match="test_prompts"):
        WORLD.tasks("test", count=513)
    assert WORLD.validate() == []


@pytest.mark.parametrize("model", ["exact", "mlp"])
def test_base_draws_what_it_was_asked_for(model):
    world = RingWorld(RingConfig(model=model))
    table = world.policy().sample(
        world.tasks("test", count=8), FlowPlan(group_size=64, steps=40), Rng(0, "t")
    )
    judged = world.evaluate(table)
    accuracy, modes = sum(judged["accuracy"]) / table.rows, judged["modes"]
    assert modes == [1.0]
    assert accuracy > 0.99 if model == "exact" else 0.6 < accuracy < 0.85
