"""The twelve rules of stages, one by one."""

import pickle
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.chain import Context, chain, keep, stage
from concordant.core.check import check_chain
from concordant.core.errors import ChainError, DataError
from concordant.core.seeds import Progress, Rng, State
from concordant.core.table import Table
from concordant.kernels import (
    composite_key,
    group_mean,
    group_zscore,
    negate,
    present,
    present_group,
    spread,
    tied_groups,
    weighted_sum,
)

NAN = float("nan")


def add_one(x: Float[Tensor, "b *e"]) -> Float[Tensor, "b *e"]:
    """Row by row."""
    return x + 1


def count_valid(x: Float[Tensor, "b *e"], valid: Bool[Tensor, "b *e"] | None = None) -> Float[Tensor, "b *e"]:
    """Every valid entry gets the number of valid entries."""
    assert valid is not None
    assert not x.isnan().any()
    return torch.where(valid, valid.sum().to(x.dtype), torch.nan)


def noisy(x: Float[Tensor, "b"], id: Int[Tensor, "b"], rng: Rng) -> Float[Tensor, "b"]:
    """Add a number addressed by row id."""
    return x + rng.uniform(id).to(x.dtype)


def faded(x: Float[Tensor, "b"], progress: Progress) -> Float[Tensor, "b"]:
    """Fade out over training."""
    return x * (1 - progress.fraction)


class Split(NamedTuple):
    """Two columns at once."""

    low: Float[Tensor, "b"]
    high: Float[Tensor, "b"]


def split(x: Float[Tensor, "b"]) -> Split:
    """Low and high part."""
    return Split(x.clamp(max=0), x.clamp(min=0))


@dataclass(frozen=True)
class RunningMean:
    """A stateful kernel."""

    rate: float = 0.5

    def init(self) -> dict[str, Tensor]:
        return {"mean": torch.zeros(())}

    def __call__(self, x: Float[Tensor, "b"], state: State) -> tuple[Float[Tensor, "b"], dict[str, Tensor]]:
        mean = (1 - self.rate) * state["mean"] + self.rate * x.mean()
        return x - mean, {"mean": mean}


def table(**columns: list[float]) -> Table:
    rows = len(next(iter(columns.values())))
    base = {
        "id": ("b", torch.arange(rows)),
        "group": ("b", torch.arange(rows) // 2),
        "mask": ("b s", torch.ones(rows, 3, dtype=torch.bool)),
        "keep": ("b", torch.ones(rows, dtype=torch.bool)),
    }
    return Table.of(base | {name: ("b", torch.tensor(values)) for name, values in columns.items()})


def test_rule_1_arrays_bind_by_name_or_own_name_and_axes_are_checked() -> None:
    t = table(r=[1.0, 0.0, 1.0, 1.0])
    made = chain(z=stage(group_zscore, x="r"), advantage=stage(spread, x="z")).run(t)
    assert made.axes("z") == ("b",)
    assert made.axes("advantage") == ("b", "s")
    with pytest.raises(ChainError, match=r"'x' of spread wants \[b\], but 'mask' is \[b s\]"):
        chain(a=stage(spread, x="mask")).run(t)


def test_rule_1_variadic_axes_serve_rows_steps_and_segments() -> None:
    t = table(r=[1.0, 0.0]).with_columns({"v": ("b s", torch.rand(2, 3)), "w": ("b n", torch.rand(2, 4))})
    made = chain(a=stage(add_one, x="r"), b=stage(add_one, x="v"), c=stage(add_one, x="w")).run(t)
    assert [made.axes(n) for n in "abc"] == [("b",), ("b", "s"), ("b", "n")]


def test_rule_2_a_tuple_stacks_along_k_and_maps_kernels_without_k() -> None:
    t = table(a=[1.0, 0.0, 3.0, 1.0], b=[0.0, 0.0, 1.0, 0.0])
    made = chain(z=stage(group_zscore, x=("a", "b")), total=stage(weighted_sum, x="z")).run(t)
    assert made.axes("z") == ("k", "b")
    single = [chain(z=stage(group_zscore, x=name)).run(t)["z"] for name in "ab"]
    assert torch.equal(made["z"], torch.stack(single))
    assert torch.equal(made["total"], single[0] + single[1])


def test_rule_3_valid_is_keep_and_present_with_zeros_for_nan() -> None:
    t = table(r=[1.0, NAN, 2.0, 3.0]).with_columns({"keep": ("b", torch.tensor([True, True, False, True]))})
    made = chain(n=stage(count_valid, x="r"), p=stage(add_one, x="r")).run(t)
    assert made["n"].isnan().tolist() == [False, True, True, False]
    assert made["n"][0] == 2
    assert made["p"].isnan().tolist() == [False, True, False, False]


def test_rule_3_a_missing_id_leaves_the_row_out() -> None:
    t = table(r=[1.0, 0.0, 5.0, 0.0]).with_columns({"group": ("b", torch.tensor([0, 0, -1, 0]))})
    made = chain(m=stage(group_mean, x="r")).run(t)
    assert made["m"].isnan().tolist() == [False, False, True, False]
    assert made["m"][0] == pytest.approx(1 / 3)


def test_rule_3_pair_columns_need_keep_at_both_ends() -> None:
    def valid_pairs(gap: Float[Tensor, "p"], valid: Bool[Tensor, "p"] | None = None) -> Float[Tensor, "p"]:
        assert valid is not None
        return valid.to(gap.dtype)

    t = table(r=[0.0, 0.0, 0.0]).with_columns(
        {
            "keep": ("b", torch.tensor([True, False, True])),
            "left": ("p", torch.tensor([0, 0])),
            "right": ("p", torch.tensor([1, 2])),
            "gap": ("p", torch.tensor([1.0, 1.0])),
        }
    )
    assert chain(v=stage(valid_pairs)).run(t)["v"].tolist() == [0.0, 1.0]


def test_rule_4_keep_stages_accumulate_and_later_statistics_see_them() -> None:
    t = table(r=[1.0, 1.0, 1.0, 0.0])
    made = chain(
        tied=stage(tied_groups, x="r"), mixed=keep(negate, x="tied"), n=stage(count_valid, x="r")
    ).run(t)
    assert made["keep"].tolist() == [False, False, True, True]
    assert made["n"][2] == 2
    assert t["keep"].all(), "the table given is not changed"
    with pytest.raises(ChainError, match="must return Bool"):
        keep(group_zscore, x="r")


def test_rule_5_partly_missing_rows_follow_the_visible_policy() -> None:
    t = table(a=[1.0, 2.0, 3.0, 4.0], b=[1.0, NAN, 1.0, 1.0])
    total = chain(total=stage(weighted_sum, x=("a", "b")))
    assert total.run(t)["total"].isnan().tolist() == [False, True, False, False]
    assert total.set("total", missing="neutral").run(t)["total"].tolist() == [2.0, 2.0, 4.0, 5.0]
    assert total.set("total", missing="renormalise").run(t)["total"].tolist() == [2.0, 4.0, 4.0, 5.0]
    rows = chain(here=keep(present, x=("a", "b"))).run(t)
    assert rows["keep"].tolist() == [True, False, True, True]
    groups = chain(here=keep(present_group, x=("a", "b"))).run(t)
    assert groups["keep"].tolist() == [False, False, True, True]


def test_rule_6_random_numbers_follow_rows_and_progress_is_bound() -> None:
    t = table(r=[1.0, 2.0, 3.0, 4.0])
    c = chain(n=stage(noisy, x="r"), f=stage(faded, x="r"))
    context = Context(Rng(seed=3), Progress(1, 4))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(c.run(t, context)["n"][order], c.run(t.take(order), context)["n"])
    assert not torch.equal(c.run(t, context)["n"], c.run(t, Context(Rng(seed=4), Progress(1, 4)))["n"])
    assert c.run(t, context)["f"].tolist() == [0.75, 1.5, 2.25, 3.0]


def test_rule_6_state_is_explicit() -> None:
    t = table(r=[1.0, 3.0])
    c = chain(c=stage(RunningMean(), x="r"))
    state = c.init()
    for expected in (1.0, 1.5):
        made, state = c.apply(t, Context(state=state))
        assert state["c"]["mean"] == expected
    assert made["c"].tolist() == [-0.5, 1.5]
    with pytest.raises(ChainError, match="keep state"):
        c.run(t)
    with pytest.raises(ChainError, match="one column"):
        chain(c=stage(RunningMean(), x=("r", "r"))).apply(t)


def test_rule_7_without_lets_readers_read_x() -> None:
    c = chain(z=stage(add_one, x="r"), w=stage(add_one, x="z"), a=stage(weighted_sum, x=("w", "r")))
    assert c.without("w").stages["a"].reads["x"] == ("z", "r")
    assert c.without("z").without("w").stages["a"].reads["x"] == ("r", "r")
    c = chain(k=stage(composite_key, x=("id", "group")), m=stage(group_mean, x="r", group="k"))
    assert c.without("m").stages.keys() == {"k"}


def test_rule_7_a_stage_without_x_only_leaves_a_tuple() -> None:
    def constant(mask: Bool[Tensor, "b s"]) -> Float[Tensor, "b"]:
        return mask.sum(1).float()

    c = chain(n=stage(constant), total=stage(weighted_sum, x=("r", "n")))
    assert c.without("n").stages["total"].reads["x"] == ("r",)
    with pytest.raises(ChainError, match="no `x`"):
        chain(n=stage(constant), m=stage(add_one, x="n")).without("n")


def test_rule_8_a_column_name_is_never_reused() -> None:
    with pytest.raises(ChainError, match="overwrite the column 'r'"):
        chain(r=stage(add_one, x="r2")).run(table(r=[1.0], r2=[1.0]))


def test_rule_10_double_normalisation_is_a_finding_not_an_error() -> None:
    twice = chain(z=stage(group_zscore, x="r"), y=stage(add_one, x="z"), advantage=stage(group_zscore, x="y"))
    assert [f.code for f in check_chain(twice)] == ["double-normalisation"]
    once = chain(z=stage(group_zscore, x="r"), advantage=stage(group_zscore, x="z", group="episode"))
    assert check_chain(once) == []


def test_rule_11_row_mixing_is_read_off_the_signature() -> None:
    assert stage(group_zscore, x="r").signature.mixes_rows
    assert not stage(spread, x="r").signature.mixes_rows


def test_rule_12_named_tuples_make_dotted_columns() -> None:
    made = chain(s=stage(split, x="r"), both=stage(weighted_sum, x=("s.low", "s.high"))).run(
        table(r=[-1.0, 2.0])
    )
    assert made["s.low"].tolist() == [-1.0, 0.0]
    assert made["both"].tolist() == [-1.0, 2.0]
    with pytest.raises(ChainError, match=r"makes: s.low, s.high"):
        chain(s=stage(split, x="r"), a=stage(add_one, x="s.lov"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: stage(group_zscore, x="r", epz=1e-6), "did you mean 'eps'"),
        (lambda: stage(group_zscore, x="r", valid="keep"), "the binder makes it"),
        (lambda: stage(group_zscore, x=3), "column name or a tuple"),
        (lambda: stage(group_zscore, x=()), "column name or a tuple"),
        (lambda: chain(a=stage(add_one, x="b"), b=stage(add_one, x="r")), "before it is made"),
        (lambda: chain(z=stage(group_zscore, x="rr")).run(table(r=[1.0])), "did you mean 'r'"),
        (lambda: chain(z=stage(group_zscore, x="r")).set("zz", eps=1.0), "no stage 'zz'"),
        (lambda: chain(z=stage(group_zscore, x="r")).set("z", epss=1.0), "did you mean 'eps'"),
        (lambda: chain(z=group_zscore), "make it with stage"),
        (lambda: chain(z=stage(weighted_sum, x=("r", "mask"))).run(table(r=[1.0])), "differ in axes"),
    ],
)
def test_mistakes_fail_with_the_nearest_name(build, message: str) -> None:
    with pytest.raises(ChainError, match=message):
        build()


def test_kernels_with_open_signatures_are_refused() -> None:
    def loose(x: Float[Tensor, "b"], **rest: float) -> Float[Tensor, "b"]:
        return x

    with pytest.raises(ChainError, match="name every parameter"):
        stage(loose, x="r")


def test_a_kernel_that_returns_the_wrong_shape_is_caught() -> None:
    def short(x: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return x[:-1]

    with pytest.raises(ChainError, match="got shape"):
        chain(a=stage(short, x="r")).run(table(r=[1.0, 2.0]))


def test_chains_pickle_and_compare() -> None:
    c = chain(z=stage(group_zscore, x=("a", "b")), total=stage(weighted_sum, x="z"))
    assert pickle.loads(pickle.dumps(c)) == c


def test_table_checks_sizes_and_names() -> None:
    with pytest.raises(DataError, match="one axis letter per dimension"):
        Table.of({"a": ("b s", torch.ones(2))})
    with pytest.raises(DataError, match="unknown axis 'x'"):
        Table.of({"a": ("x", torch.ones(2))})
    with pytest.raises(DataError, match="share this axis"):
        Table.of({"a": ("b", torch.ones(2)), "c": ("b", torch.ones(3))})
    with pytest.raises(DataError, match="did you mean 'mask'"):
        table(r=[1.0])["mas"]
    with pytest.raises(DataError, match="2 entries for 1 rows"):
        Table.of({"a": ("b", torch.ones(1))}, {"completion": ["x", "y"]})


def test_concat_pads_what_is_not_there() -> None:
    a = Table.of(
        {
            "mask": ("b s", torch.ones(1, 2).bool()),
            "q": ("b q", torch.tensor([[7]])),
            "v": ("b n", torch.ones(1, 1)),
        },
        {"f": ["x"]},
    )
    b = Table.of(
        {
            "mask": ("b s", torch.ones(1, 3).bool()),
            "q": ("b q", torch.tensor([[8, 9]])),
            "v": ("b n", torch.ones(1, 2)),
        },
        {"f": ["y"]},
    )
    both = Table.concat([a, b])
    assert both["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert both["q"].tolist() == [[-1, 7], [8, 9]]
    assert both["v"][0, 1].isnan()
    assert both.fields["f"] == ["x", "y"]
    assert both.take(torch.tensor([1])).fields["f"] == ["y"]
