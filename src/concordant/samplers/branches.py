"""Branches: noise at a single step of an otherwise deterministic trajectory, so that the end judges that step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from concordant.core.errors import ConfigError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.policies.flow import FlowPlan, Path, Rows, Steps, pick
from concordant.samplers.base import Ask, Cost, Drawn, Scored


@dataclass(frozen=True)
class Branches:
    """Sample branches of deterministic trajectories (TempFlow-GRPO).

    Each prompt gets `group_size / branches` initial noises. From each, the ODE is followed to a step k, `branches`
    noisy continuations of that step are drawn, and each is completed by the ODE. Only step k is recorded and trains.
    One k is drawn for each initial noise (`grouping="seed"`), or for each prompt (`grouping="prompt"`), among all
    steps but the last. Images of one group share prompt, k and, with "seed", the initial noise.
    """

    steps: int = 10
    noise: float = 0.7
    branches: int = 6
    grouping: Literal["seed", "prompt"] = "seed"

    needs_reference = False
    shares = True
    modality = "image"

    def __post_init__(self) -> None:
        if self.branches < 2:
            raise ConfigError(
                f"branches must be at least 2, got {self.branches}: one branch has nothing to compare"
            )
        if self.steps < 2:
            raise ConfigError("branching needs at least 2 steps: the last one has no room to act")
        if self.grouping not in ("seed", "prompt"):
            raise ConfigError(f"grouping must be 'seed' or 'prompt', got {self.grouping!r}")
        if not self.noise > 0:
            raise ConfigError("branches without noise are all equal; set noise above 0")

    def init(self) -> dict[str, Any]:
        """No state."""
        return {}

    def __call__(
        self, ask: Ask, policy: Any, score: Callable[[Table], Scored], rng: Rng, state: dict[str, Any]
    ) -> Drawn:
        """Sample and score."""
        before = policy.evaluations
        with torch.no_grad():
            rows = self._draw(ask, policy, rng)
        spent = policy.evaluations - before
        scored = score(rows)
        return Drawn(scored.table, state, Cost(0, rows.rows, scored.calls, spent), {})

    def _draw(self, ask: Ask, policy: Any, rng: Rng) -> Table:
        seeds_each, rest = divmod(ask.plan.group_size, self.branches)
        if rest or not seeds_each:
            raise ConfigError(
                f"train.group_size {ask.plan.group_size} must be a multiple of the {self.branches} branches"
            )
        of_task = torch.arange(len(ask.tasks)).repeat_interleave(seeds_each)
        first_task = ask.first_id // ask.plan.group_size
        seed = first_task * seeds_each + torch.arange(len(of_task))
        decides = seed if self.grouping == "seed" else first_task + of_task
        k = (rng.child("branch").uniform(decides) * (self.steps - 1)).long()
        steps = policy.schedule.steps(FlowPlan(ask.plan.group_size, self.steps, noise=self.noise))
        flat = policy.schedule.steps(FlowPlan(ask.plan.group_size, self.steps, noise=0.0))
        condition = policy.encode([task.prompt for task in ask.tasks])
        here, out = _trunk(policy, pick(condition, of_task.to(policy.device)), flat, seed, k, rng)

        of_seed = torch.arange(len(seed)).repeat_interleave(self.branches)
        ids = ask.first_id + torch.arange(len(of_seed))
        cx, cv, std = (v[0, k[of_seed]][:, None] for v in (steps.coef_x, steps.coef_v, steps.std))
        x, v = here[of_seed], out[of_seed]
        drawn = cx * x + cv * v + std * rng.child("noise").normal(ids, x.shape[1]).to(x)
        later = torch.arange(self.steps) > k[of_seed][:, None]
        given = pick(condition, of_task[of_seed].to(policy.device))
        end = policy.integrate(drawn, given, flat, on=later, trace=False).states[:, -1]
        who = Rows(ask.tasks, of_task[of_seed], ids, decides[of_seed], seed[of_seed])
        mask = torch.arange(self.steps) == k[of_seed][:, None]
        return policy.assemble(who, steps, _single(x, v, drawn, end, mask), mask, _all_but_last(steps))


def _trunk(
    policy: Any, condition: Any, flat: Steps, seed: Tensor, k: Tensor, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Follow the ODE to step k of each row; return the state there and what the network says of it."""
    steps = flat.std.shape[1]
    walked = policy.integrate(policy.start(seed, rng), condition, flat, on=torch.arange(steps) <= k[:, None])
    rows = torch.arange(len(k))
    return walked.states[rows, k], walked.outs[rows, k]


def _single(x: Tensor, out: Tensor, drawn: Tensor, end: Tensor, mask: Tensor) -> Path:
    """A path that is known at one step, and at its end."""
    rows, steps = mask.shape
    at = mask.long().argmax(1)
    states = x.new_zeros(rows, steps + 1, x.shape[1])
    every = torch.arange(rows)
    states[every, at], states[every, at + 1], states[:, -1] = x, drawn, end
    outs = x.new_zeros(rows, steps, x.shape[1])
    outs[every, at] = out
    return Path(states, outs)


def _all_but_last(steps: Steps) -> Tensor:
    trainable = steps.std > 0
    trainable[:, -1] = False
    return trainable
