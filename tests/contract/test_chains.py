"""One suite over the chain of every arm of every recipe: what must hold for any way of turning rewards into credit."""

import pickle

import pytest
import torch

from concordant import recipes
from concordant.core.chain import Chain, Context
from concordant.core.config import plain
from concordant.core.recipe import Arm
from concordant.core.seeds import Progress, Rng
from concordant.core.table import Table
from concordant.kernels import values_after

GROUPS, SIZE, STEPS, SEGMENTS, CHECKS = 5, 8, 7, 3, 6
ARMS = [(slug, arm) for slug in recipes.slugs() for arm in recipes.get(slug).arms]
FINAL = ("advantage", "local", "overall", "local_weight", "overall_weight")


def rollouts(arm: Arm, seed: int = 0) -> Table:
    """Random rollouts with every column that an arm of the embedded worlds may read; the last group is tied."""
    g = torch.Generator().manual_seed(seed)
    rows = GROUPS * SIZE
    lengths = torch.randint(2, STEPS + 1, (rows,), generator=g)
    mask = torch.arange(STEPS) < lengths[:, None]
    turns = torch.arange(SEGMENTS) < torch.randint(1, SEGMENTS + 1, (rows, 1), generator=g)
    group = torch.arange(GROUPS).repeat_interleave(SIZE)
    answer = torch.randint(0, 3, (rows,), generator=g)
    columns = {
        "id": ("b", torch.randperm(rows, generator=g) + 100),
        "task": ("b", group + 7),
        "group": ("b", group * 3 + 11),
        "episode": ("b", torch.arange(rows)),
        "keep": ("b", torch.ones(rows, dtype=torch.bool)),
        "mask": ("b s", mask),
        "logp": ("b s", -torch.rand(rows, STEPS, generator=g) * mask),
        "ref_logp": ("b s", -torch.rand(rows, STEPS, generator=g) * mask),
        "answer_span": ("b s", mask & (torch.arange(STEPS) == 1)),
        "segment": ("b s", torch.where(mask, torch.arange(STEPS) % SEGMENTS, -1)),
        "turn": ("b n", turns),
        "answer_id": ("b", answer),
        "step_score": ("b n", torch.rand(rows, SEGMENTS, generator=g).masked_fill(~turns, torch.nan)),
    }
    for name in ("tests", "flat_tests"):
        checks = torch.randint(0, 2, (rows, CHECKS), generator=g).float()
        checks[-SIZE:] = 1.0
        checks[: 2 * SIZE, -2:] = torch.nan  # two groups have smaller suites
        columns[name] = ("b u", checks)
    compared = "left" in arm.chain.inputs
    for name in arm.rewards:
        values = torch.randint(0, 2, (rows,), generator=g).float()
        values[-SIZE:] = 1.0
        columns[str(name)] = ("b", values)
        columns[f"{name}_before"] = ("b s", torch.rand(rows, STEPS, generator=g))
    columns |= schedule(rows)
    if compared:
        columns["left"], columns["right"] = pairs(rows)
        for name in arm.rewards:
            gap = columns[str(name)][1][columns["left"][1]] - columns[str(name)][1][columns["right"][1]]
            columns[str(name)] = ("p", (gap.sign() + 1) / 2)
    return Table.of(columns)


def schedule(rows: int) -> dict[str, tuple[str, torch.Tensor]]:
    """Columns of denoising steps, the same in each row."""
    sigma = torch.linspace(1.0, 0.0, STEPS + 1).expand(rows, -1)
    trainable = (torch.arange(STEPS) < STEPS - 1).expand(rows, -1)
    return {
        "sigma": ("b s", sigma[:, :-1].clone()),
        "sigma_next": ("b s", sigma[:, 1:].clone()),
        "std": ("b s", sigma[:, :-1] * 0.3),
        "trainable": ("b s", trainable.clone()),
    }


def pairs(rows: int) -> tuple[tuple[str, torch.Tensor], tuple[str, torch.Tensor]]:
    """All pairs of each group."""
    one, two = torch.triu_indices(SIZE, SIZE, 1)
    start = torch.arange(0, rows, SIZE)[:, None]
    return ("p", (start + one).flatten()), ("p", (start + two).flatten())


def outcome(chain: Chain, table: Table) -> dict[str, torch.Tensor]:
    """Final columns, by row id, so that rows can be compared across tables."""
    made, _ = chain.apply(table, Context(Rng(5), Progress(1, 4), chain.init()))
    order = table["id"].argsort()
    return {name: made[name][order] for name in (*FINAL, "keep") if name in made}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, values in a.items():
        torch.testing.assert_close(values, b[name], rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.fixture(params=ARMS, ids=["/".join(pair) for pair in ARMS])
def arm(request: pytest.FixtureRequest) -> Arm:
    slug, name = request.param
    return recipes.get(slug).arm(name)


def test_permuting_rows_permutes_results(arm: Arm) -> None:
    table = rollouts(arm)
    shuffled = table.take(torch.randperm(table.rows, generator=torch.Generator().manual_seed(1)))
    same(outcome(arm.chain, table), outcome(arm.chain, shuffled))


def test_renaming_groups_changes_nothing(arm: Arm) -> None:
    table = rollouts(arm)
    renamed = table.with_columns({"group": ("b", (table["group"] * 7919) % 1009)})
    same(outcome(arm.chain, table), outcome(arm.chain, renamed))


def test_padding_changes_nothing(arm: Arm) -> None:
    if any(stage.kernel is values_after for stage in arm.chain.stages.values()):
        return  # denoising steps all exist: the value after the last one is that of the image
    table = rollouts(arm)
    wide = Table.concat([table, _wider(table)]).take(torch.arange(table.rows))
    padded, plain_ = outcome(arm.chain, wide), outcome(arm.chain, table)
    same({n: v[:, :STEPS] if v.dim() == 2 else v for n, v in padded.items()}, plain_)


def _wider(table: Table) -> Table:
    one = table.take(torch.tensor([0]))
    extra = {}
    for name in one.names:
        axes = one.axes(name)
        if axes[-1] in ("s", "n"):
            extra[name] = (axes, torch.cat([one[name], one[name]], dim=-1))
    return one.with_columns(extra)


def test_keep_false_equals_leaving_the_row_out(arm: Arm) -> None:
    table = rollouts(arm)
    out = torch.zeros(table.rows, dtype=torch.bool)
    out[[1, 9, 10, 37]] = True
    marked = outcome(arm.chain, table.with_columns({"keep": ("b", ~out)}))
    stays = ~out[table["id"].argsort()]
    same({n: v[stays] for n, v in marked.items()}, outcome(arm.chain, table.take(~out)))
    for name in ("advantage", "local", "overall"):
        if name in marked:
            assert not (marked[name][~stays].nan_to_num() != 0).any(), (
                f"{name} of a row that is out trains something"
            )


def uses(arm: Arm, table: Table, name: str) -> bool:
    """Whether other values of a reward give another result."""
    other = table.with_columns({name: (table.axes(name), torch.arange(len(table[name])) % 2.0)})
    one, two = outcome(arm.chain, table), outcome(arm.chain, other)
    return any(not torch.equal(one[key].nan_to_num(), two[key].nan_to_num()) for key in one)


def test_a_missing_reward_has_no_advantage_and_moves_only_rows_it_may(arm: Arm) -> None:
    table = rollouts(arm)
    name = str(arm.rewards[0])
    if not uses(arm, table, name):
        return  # a reward of weight 0 may be missing
    gone = table[name].clone()
    if table.axes(name) == ("p",):  # nobody judged any pair of the row
        gone[(table["left"] == 2) | (table["right"] == 2)] = torch.nan
    else:
        gone[2] = torch.nan
    missing = outcome(arm.chain, table.with_columns({name: (table.axes(name), gone)}))
    without = outcome(arm.chain, table.take(torch.arange(table.rows) != 2))
    row = int((table["id"][table["id"].argsort()] == table["id"][2]).nonzero())
    others = torch.arange(table.rows) != row
    for column in set(missing) & {"advantage", "local"}:
        cells = missing[column][row]
        if (
            f"{name}_before" in arm.chain.inputs
        ):  # values of the steps before the last one are rewards of their own
            cells = cells[-1:]
        assert not (cells.nan_to_num() != 0).any()
    signals = {*arm.rewards, *(c for c in arm.chain.inputs if "u" in table.axes(c))}
    if (
        len(signals) == 1 and f"{name}_before" not in arm.chain.inputs
    ):  # with several signals the row still counts for those it has
        same(*({n: v for n, v in side.items() if n not in ("keep", "overall", "overall_weight", "local_weight")}
               for side in ({n: v[others] for n, v in missing.items()}, without)))  # fmt: skip


def test_a_tied_group_gets_exactly_zero_from_group_credit(arm: Arm) -> None:
    normalisers = {"group_zscore", "group_center", "group_loo"}
    table = rollouts(arm)
    made, _ = arm.chain.apply(table, Context(Rng(5), Progress(1, 4), arm.chain.init()))
    for name, stage in arm.chain.stages.items():
        source = stage.inputs.get("x")
        if stage.signature.name not in normalisers or source is None:
            continue
        for x, z in zip(_components(made, source), _components(made, name), strict=True):
            tied = x[-SIZE:]
            if len(tied.unique()) == 1:
                kept = made["keep"][-SIZE:]  # what a filter left out is missing, not zero
                assert torch.equal(z[-SIZE:][kept], torch.zeros(int(kept.sum())))


def _components(table: Table, source: str | tuple[str, ...]) -> list[torch.Tensor]:
    if isinstance(source, tuple):
        return [table[name] for name in source]
    return list(table[source]) if table.axes(source)[0] == "k" else [table[source]]


def test_inputs_are_untouched_and_results_repeat(arm: Arm) -> None:
    table = rollouts(arm)
    before = {name: table[name].clone() for name in table.names}
    first, second = outcome(arm.chain, table), outcome(arm.chain, table)
    for name, values in before.items():
        torch.testing.assert_close(table[name], values, rtol=0, atol=0, equal_nan=True)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def test_arms_pickle_and_print_as_data(arm: Arm) -> None:
    assert pickle.loads(pickle.dumps(arm.chain)) == arm.chain
    assert plain(arm)["chain"].keys() == arm.chain.stages.keys()


@pytest.mark.parametrize("arm_name", ["gdpo", "grpo", "grpo-no-std", "gdpo-no-whitening"])
def test_a_tied_group_among_others_trains_nothing_at_all(arm_name: str) -> None:
    arm = recipes.get("gdpo").arm(arm_name)
    for seed in range(20):
        made, _ = arm.chain.apply(rollouts(arm, seed), Context(Rng(5), Progress(1, 4), arm.chain.init()))
        assert torch.equal(made["advantage"][-SIZE:], torch.zeros(SIZE, STEPS))
