"""Rolling statistics of tasks: against the published tracker written in loops, state, missing rewards."""

import json
import math
from collections import deque

import pytest
import torch

from concordant.core.chain import Context, chain, stage
from concordant.core.errors import ConfigError, DataError
from concordant.core.table import Table
from concordant.kernels import RollingZscore

NAN = math.nan


class Tracker:
    """DDPO's tracker of rewards by prompt, one prompt at a time."""

    def __init__(self, buffer, min_count, eps):
        self.buffer, self.min_count, self.eps, self.stats = buffer, min_count, eps, {}

    def update(self, x, task):
        everyone = [v for v in x if not math.isnan(v)]
        z = [NAN] * len(x)
        for name in set(task):
            rows = [i for i, t in enumerate(task) if t == name and not math.isnan(x[i])]
            held = self.stats.setdefault(name, deque(maxlen=self.buffer))
            held.extend(x[i] for i in rows)
            over = everyone if len(held) < self.min_count else list(held)
            if not over:
                continue
            mean = sum(over) / len(over)
            std = math.sqrt(sum((v - mean) ** 2 for v in over) / len(over))
            for i in rows:
                z[i] = (x[i] - mean) / (std + self.eps)
        return z


def batches(rounds, seed=0, tasks=6):
    g = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        rows = int(torch.randint(1, 25, (), generator=g))
        x = torch.randn(rows, generator=g, dtype=torch.float64)
        x = x.masked_fill(torch.rand(rows, generator=g) < 0.15, NAN)
        yield x, torch.randint(0, tasks, (rows,), generator=g) * 1000 + 3, torch.arange(rows)


def state_of_one():
    return RollingZscore(buffer=1, min_count=1).init()


def close(got, want, atol=1e-12):
    torch.testing.assert_close(
        got, torch.as_tensor(want, dtype=got.dtype), atol=atol, rtol=0.0, equal_nan=True
    )


def same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype


@pytest.mark.parametrize(("buffer", "min_count"), [(16, 16), (4, 2), (2, 2), (3, 3)])
def test_equals_the_published_tracker_over_many_batches(buffer, min_count):
    kernel, tracker = (
        RollingZscore(buffer=buffer, min_count=min_count, eps=1e-6),
        Tracker(buffer, min_count, 1e-6),
    )
    state = kernel.init()
    for x, task, id in batches(30):
        z, state = kernel(x, task, id, state)
        close(z, tracker.update(x.tolist(), task.tolist()), 1e-9)
    held = {
        int(t): v[:n].tolist()
        for t, n, v in zip(state["task"], state["count"], state["values"], strict=True)
        if n
    }
    assert held == {t: list(v) for t, v in tracker.stats.items() if v}


def test_the_state_is_made_of_arrays_sorted_by_task_and_survives_saving():
    kernel = RollingZscore(buffer=4, min_count=2)
    first, second = list(batches(2, seed=3))
    _, state = kernel(*first, kernel.init())
    assert state["task"].tolist() == sorted(state["task"].tolist())
    text = json.dumps({name: (v.tolist(), str(v.dtype)) for name, v in state.items()})
    back = {
        name: torch.tensor(v, dtype=getattr(torch, kind.split(".")[1]))
        for name, (v, kind) in json.loads(text).items()
    }
    before = {name: v.clone() for name, v in state.items()}
    z, after = kernel(*second, state)
    z_back, after_back = kernel(*second, back)
    assert torch.equal(z.nan_to_num(9), z_back.nan_to_num(9))
    same_state(after, after_back)
    same_state(state, before)


def test_the_order_of_rows_changes_nothing_as_rewards_enter_by_id():
    kernel = RollingZscore(buffer=2, min_count=2)
    x, task, id = (
        torch.tensor([1.0, 5.0, 3.0, 2.0]),
        torch.tensor([7, 7, 7, 4]),
        torch.tensor([30, 10, 20, 5]),
    )
    z, state = kernel(x, task, id, kernel.init())
    assert state["values"][1].tolist() == [3.0, 1.0], "the last two by id"
    order = torch.tensor([2, 0, 3, 1])
    moved, other = kernel(x[order], task[order], id[order], kernel.init())
    assert torch.equal(moved, z[order])
    same_state(state, other)


def test_ties_few_rewards_and_missing_ones():
    kernel = RollingZscore(buffer=3, min_count=2)
    zero, one = torch.tensor([0]), torch.tensor([1.0])
    z, state = kernel(one, zero, zero, kernel.init())
    assert z.tolist() == [0.0], "alone in the batch, nothing in the buffer"
    z, state = kernel(one, zero, zero, state)
    assert z.tolist() == [0.0] and state["count"].tolist() == [2], "equal"
    z, after = kernel(one * NAN, zero, zero, state)
    assert z.isnan().all()
    same_state(after, state)
    z, after = kernel(one * 9, zero, zero, state, valid=torch.tensor([False]))
    assert z.isnan().all()
    same_state(after, state)
    z, after = kernel(one * 9, zero - 1, zero, state)
    assert z.isnan().all()
    same_state(after, state)
    nobody = torch.zeros(0)
    z, after = kernel(nobody, nobody.long(), nobody.long(), state)
    assert z.shape == (0,)
    same_state(after, state)
    z, _ = RollingZscore(buffer=1, min_count=1)(
        torch.tensor([1.0, 3.0]), zero.repeat(2), torch.arange(2), state_of_one()
    )
    assert z.tolist() == [0.0, 0.0], "a buffer without spread has no scale"
    seven = torch.full((7,), 0.35)
    z, _ = kernel(seven, torch.arange(7) % 2, torch.arange(7), kernel.init())
    assert z.tolist() == [0.0] * 7


def test_a_task_is_judged_by_its_own_past_and_not_by_other_tasks():
    kernel = RollingZscore(buffer=4, min_count=2, eps=0.0)
    task, id = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    _, state = kernel(torch.tensor([0.0, 2.0, 100.0, 300.0]), task, id, kernel.init())
    z, _ = kernel(torch.tensor([1.0, 1.0, 200.0, 200.0]), task, id, state)
    assert z.tolist() == [0.0] * 4
    z, _ = kernel(torch.tensor([3.0, 1.0]), task[:2], id[:2], state)
    close(z, [(3 - 1.5) / 1.25**0.5, -0.5 / 1.25**0.5], 1e-6)


def test_in_a_chain_the_state_is_handed_on_and_rows_that_are_out_are_not_remembered():
    made = chain(z=stage(RollingZscore(buffer=2, min_count=2, eps=0.0), x="reward"))
    state = made.init()
    table = Table.of(
        {
            "reward": ("b", torch.tensor([1.0, 3.0, 50.0])),
            "task": ("b", torch.tensor([8, 8, 8])),
            "id": ("b", torch.tensor([0, 1, 2])),
            "keep": ("b", torch.tensor([True, True, False])),
        }
    )
    out, state = made.apply(table, Context(state=state))
    close(out["z"], [-1.0, 1.0, NAN])
    assert state["z"]["values"].tolist() == [[1.0, 3.0]]
    out, state = made.apply(table.take(torch.tensor([1])), Context(state=state))
    assert out["z"].tolist() == [0.0] and state["z"]["values"].tolist() == [[3.0, 3.0]]


def test_unusable_options_and_states_are_refused():
    for options in ({"buffer": 4}, {"min_count": 0}, {"buffer": 0, "min_count": 0}):
        with pytest.raises(ConfigError, match="min_count must lie in"):
            RollingZscore(**options)
    with pytest.raises(ConfigError, match="eps must lie in"):
        RollingZscore(eps=-1.0)
    zero = torch.zeros(1)
    with pytest.raises(ConfigError, match="the state must be what"):
        RollingZscore()(zero, zero.long(), zero.long(), {"mean": zero})
    with pytest.raises(ConfigError, match="buffers of 16 rewards, this kernel has 4"):
        RollingZscore(buffer=4, min_count=4)(zero, zero.long(), zero.long(), RollingZscore().init())
    with pytest.raises(DataError, match="holds inf"):
        RollingZscore()(zero + math.inf, zero.long(), zero.long(), RollingZscore().init())
