"""Generators: ratio 1, addressed noise, shared prefixes, settings, memory, and DDIM by the same code."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng
from concordant.kernels.flow import flow_sde_step
from concordant.policies.flow import DDIMSchedule, FlowPlan, FlowPolicy, FlowSchedule, flow_sigmas
from concordant.policies.flow.conditions import with_null

DIMS = 16


@dataclass(frozen=True)
class Task:
    id: int
    prompt: str
    fields: dict[str, Any] = field(default_factory=dict)


TASKS = [Task(7, "0", {"label": 0}), Task(8, "1", {"label": 1}), Task(9, "2", {"label": 2})]


class Net(nn.Module):
    """A small velocity network with three classes and a null condition."""

    shape = (4, 4, 1)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.enter, self.leave = nn.Linear(DIMS + 5, 32), nn.Linear(32, DIMS)
        self.register_buffer("null", torch.eye(4)[3])
        self.asked = 0

    def encode(self, prompts: list[str]) -> Tensor:
        return torch.eye(4)[[int(prompt) for prompt in prompts]]

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        self.asked += len(x)
        return self.leave(torch.tanh(self.enter(torch.cat([x, time[:, None], condition], 1))))

    def decode(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2).clamp(0, 1).reshape(-1, 4, 4, 1)


def alpha_bars(count: int = 50) -> tuple[float, ...]:
    return tuple(math.cos(0.5 * math.pi * (i + 1) / (count + 2)) ** 2 for i in range(count))


POLICIES = {
    "flow": lambda: FlowPolicy(Net()),
    "guided": lambda: FlowPolicy(Net(), guidance=3.0, schedule=FlowSchedule(3.0)),
    "sum": lambda: FlowPolicy(Net(), reduce="sum"),
    "ddim": lambda: FlowPolicy(Net(), schedule=DDIMSchedule(alpha_bars())),
}


@pytest.mark.parametrize("kind", ["flow", "dance", "cps"])
@pytest.mark.parametrize("name", POLICIES)
def test_ratio_is_one_before_the_first_update(name: str, kind: Any) -> None:
    policy = POLICIES[name]()
    table = policy.sample(TASKS, FlowPlan(4, 6, kind, 0.6, record_mean=True), Rng(1))
    found = policy.scores(table, ("logp", "mean"))
    bound = 1e-6 * (DIMS if name == "sum" else 1)
    assert float(((found["logp"] - table["logp"])[table["mask"]]).exp().sub(1).abs().max()) <= bound
    torch.testing.assert_close(
        found["mean"][table["mask"]], table["mean"][table["mask"]], atol=1e-6, rtol=1e-5
    )
    assert table["mask"].sum() == 12 * 5  # the last step does not train
    assert len(table.fields["image"]) == 12
    assert table.fields["image"][0].shape == (4, 4, 1)
    assert table.fields["label"] == [0] * 4 + [1] * 4 + [2] * 4


def test_recorded_steps_are_those_of_the_step_kernel() -> None:
    policy = FlowPolicy(Net())
    table = policy.sample(TASKS, FlowPlan(2, 5, "flow", 0.7, last="train"), Rng(2))
    sigmas = flow_sigmas(5)
    for k in range(5):
        x = table["latent"][:, k]
        with torch.no_grad():
            condition = policy.encode(table.fields["prompt"])
            v = policy.predict(x, table["sigma"][:, k], condition)
        step = flow_sde_step(
            x, v, float(sigmas[k]), float(sigmas[k + 1]), 0.7, table["next_latent"][:, k], guard=0.8
        )
        torch.testing.assert_close(step.logp, table["logp"][:, k], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(table["latent"][:, 1:], table["next_latent"][:, :-1], atol=0, rtol=0)
    torch.testing.assert_close(table["next_latent"][:, -1], table["sample"], atol=0, rtol=0)


def test_rows_do_not_depend_on_the_batch_and_noise_levels_matter() -> None:
    policy = FlowPolicy(Net())
    plan = FlowPlan(3, 4)
    whole = policy.sample(TASKS, plan, Rng(3))
    part = policy.sample(TASKS[1:], plan, Rng(3), first_id=3)
    torch.testing.assert_close(whole["sample"][3:], part["sample"], atol=1e-6, rtol=1e-5)
    assert whole["id"][3:].equal(part["id"])
    other = policy.sample(TASKS, plan, Rng(4))
    assert float((other["sample"] - whole["sample"]).abs().mean()) > 0.1


def test_groups_that_start_from_one_noise_share_the_way_to_the_first_noise() -> None:
    policy = FlowPolicy(Net())
    plan = FlowPlan(4, 6, noise=0.5, window=(2, 4), same_noise=True)
    before = policy.evaluations
    table = policy.sample(TASKS, plan, Rng(5))
    assert policy.evaluations - before == 3 * 2 + 12 * 4  # two shared steps for 3 prompts, four for 12 rows
    assert table["mask"].tolist() == [[False, False, True, True, False, False]] * 12
    first = table["latent"][:, 2].reshape(3, 4, DIMS)
    assert float((first - first[:, :1]).abs().max()) == 0.0
    ends = table["sample"].reshape(3, 4, DIMS)
    assert float((ends[:, 1:] - ends[:, :1]).abs().min()) > 0
    apart = policy.sample(TASKS, FlowPlan(4, 6, noise=0.5, window=(2, 4)), Rng(5))
    starts = apart["latent"][:, 0].reshape(3, 4, DIMS)
    assert float((starts[:, 1:] - starts[:, :1]).abs().min()) > 0


def test_without_noise_the_ode_is_followed_and_nothing_trains() -> None:
    policy = FlowPolicy(Net())
    table = policy.sample(TASKS, FlowPlan(2, 8, noise=0.0), Rng(6))
    x = policy.start(table["id"], Rng(6))
    with torch.no_grad():
        sigmas = flow_sigmas(8).float()
        condition = policy.encode(table.fields["prompt"])
        for here, after in itertools.pairwise(sigmas):
            x = x + policy.predict(x, here.expand(6), condition) * (after - here)
    torch.testing.assert_close(table["sample"], x, atol=1e-6, rtol=1e-5)
    assert table["mask"].shape == (6, 0)
    assert "logp" not in table


def test_other_settings_are_refused_with_both_values() -> None:
    table = FlowPolicy(Net(), guidance=2.0).sample(TASKS, FlowPlan(2, 4), Rng(0))
    with pytest.raises(DataError, match=r"guidance 2, the policy scores with guidance 1"):
        FlowPolicy(Net()).rescore(table)
    table = FlowPolicy(Net(), schedule=FlowSchedule(3.0)).sample(TASKS, FlowPlan(2, 4), Rng(0))
    with pytest.raises(DataError, match=r"shift 3, the policy scores with shift 1"):
        FlowPolicy(Net()).rescore(table)


def test_guidance_mixes_two_predictions_and_counts_both() -> None:
    policy, plain = FlowPolicy(Net(), guidance=2.5), FlowPolicy(Net())
    x, time = torch.randn(5, DIMS), torch.full((5,), 0.4)
    condition = policy.encode(["0"] * 5)
    with torch.no_grad():
        got = policy.predict(x, time, condition)
        given, free = plain.predict(x, time, condition), plain.predict(x, time, torch.eye(4)[[3] * 5])
    torch.testing.assert_close(got, free + 2.5 * (given - free))
    assert (policy.evaluations, plain.evaluations) == (10, 10)


def saved_bytes(policy: FlowPolicy, steps: int) -> tuple[int, list[Tensor]]:
    """Bytes that autograd keeps for the backward pass of one loss, and the gradients."""
    table = policy.sample(TASKS, FlowPlan(8, steps), Rng(1))
    held = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal held
        if tensor.dim() == 2 and tensor.shape[1] == 32:  # activations of the hidden layer
            held += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = policy.rescore(table)["logp"].sum()
    loss.backward()
    return held, [p.grad.clone() for p in policy.parameters()]


def test_recomputed_activations_give_the_same_gradient_in_memory_that_does_not_grow_with_the_steps() -> None:
    kept = {steps: saved_bytes(FlowPolicy(Net()), steps) for steps in (4, 12)}
    lean = {steps: saved_bytes(FlowPolicy(Net(), recompute=16), steps) for steps in (4, 12)}
    assert kept[12][0] > 2.5 * kept[4][0]
    assert lean[12][0] <= lean[4][0]
    for whole, piecewise in zip(kept[12][1], lean[12][1], strict=True):
        torch.testing.assert_close(whole, piecewise, atol=1e-5, rtol=1e-4)


def test_denoising_errors_are_zero_for_a_network_that_knows_the_target() -> None:
    class Knows(Net):
        def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
            return self.target

    noise = torch.randn(2, 3, DIMS)
    sample = torch.randn(2, DIMS)
    time = torch.rand(2, 3)
    network = Knows()
    network.target = (noise - sample[:, None]).flatten(0, 1)
    assert float(FlowPolicy(network).errors(sample, ["0", "1"], time, noise).abs().max()) == 0.0
    network.target = noise.flatten(0, 1) + 2.0
    policy = FlowPolicy(network, schedule=DDIMSchedule(alpha_bars()))
    torch.testing.assert_close(policy.errors(sample, ["0", "1"], time, noise), torch.full((2, 3), 4.0))


def test_a_latent_that_is_not_finite_makes_an_image_that_says_so() -> None:
    policy = FlowPolicy(Net())
    latents = torch.zeros(2, DIMS)
    latents[1, 3] = math.nan
    clean, broken = policy.images(latents)
    assert float(clean.mean()) == 0.5
    assert bool(torch.from_numpy(broken).isnan().any())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"group_size": 0}, "group_size"),
        ({"noise": (0.1, 0.2)}, "2 levels for 10 steps"),
        ({"noise": -1.0}, "not negative"),
        ({"window": (4, 12)}, "inside the 10 steps"),
    ],
)
def test_nonsense_plans_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        FlowPlan(**options)


def test_snapshots_do_not_follow_training_and_states_restore() -> None:
    policy = FlowPolicy(Net(), guidance=2.0)
    table = policy.sample(TASKS, FlowPlan(2, 4), Rng(0))
    frozen = policy.snapshot()
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(frozen.score(table), table["logp"], atol=1e-6, rtol=1e-5)
    assert float((policy.score(table) - table["logp"]).abs().max()) > 1e-3
    policy.load_state_dict(state)
    torch.testing.assert_close(policy.score(table), table["logp"], atol=1e-6, rtol=1e-5)
    assert frozen.guidance == 2.0
    assert not frozen.parameters()


def test_a_null_condition_of_another_form_is_refused() -> None:
    given, null = torch.ones(2, 4), torch.zeros(4)
    assert torch.as_tensor(with_null(given, null)).tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] * 2
    both = with_null((given, given), (null, null))
    assert [part.shape for part in both] == [(4, 4), (4, 4)]
    with pytest.raises(ConfigError, match="both tensors, or both tuples"):
        with_null(given, (null,))
