"""Edits give new chains; differences are data; explanations show every intermediate value."""

import pytest
import torch

from concordant.core.chain import chain, stage
from concordant.core.edits import Change, difference, explain
from concordant.core.errors import ChainError
from concordant.core.table import Table
from concordant.kernels import batch_zscore, group_center, group_zscore, multiply_gate, spread, weighted_sum
from concordant.recipes.gdpo import gdpo
from concordant.recipes.grpo import grpo

BASE = gdpo(("correct", "short"))


def test_set_changes_one_option_and_leaves_the_original() -> None:
    edited = BASE.set("z", eps=1e-6)
    assert difference(BASE, edited) == [Change("z", "option eps", 1e-4, 1e-6)]
    assert difference(BASE, BASE.set("z", eps=1e-4)) == []


def test_swap_keeps_bindings() -> None:
    edited = BASE.swap("z", group_center)
    assert edited.stages["z"].reads == BASE.stages["z"].reads
    assert difference(BASE, edited) == [Change("z", "kernel", "group_zscore", "group_center")]
    with pytest.raises(ChainError, match="has no parameter 'x'"):
        BASE.swap("z", lambda_free)


def lambda_free(mask: torch.Tensor) -> torch.Tensor:
    """A kernel without x; replaced below by a typed one."""
    return mask


lambda_free.__annotations__ = {
    "mask": spread.__annotations__["mask"],
    "return": spread.__annotations__["return"],
}


def test_without_and_difference_name_the_rewired_reader() -> None:
    assert difference(BASE, BASE.without("whitened")) == [
        Change("whitened", "stage", "batch_zscore", None),
        Change("advantage", "reads x", "whitened", "total"),
    ]


def test_insert_needs_a_free_name_and_a_place() -> None:
    extra = stage(batch_zscore, x="total")
    edited = grpo().insert("z", w=extra).rewire("z", x="w")
    assert list(edited.stages) == ["total", "w", "z", "advantage"]
    with pytest.raises(ChainError, match="already has a stage 'total'"):
        grpo().insert("z", total=extra)
    with pytest.raises(ChainError, match="did you mean 'z'"):
        grpo().insert("zz", w=extra)


def test_rewire_refuses_unknown_parameters() -> None:
    with pytest.raises(ChainError, match="no array parameter 'y'"):
        grpo().rewire("z", y="total")


def test_through_sends_all_readers_through_a_new_stage() -> None:
    gated = BASE.through("short", short_if_correct=stage(multiply_gate, x="short", gate="correct"))
    assert gated.stages["z"].reads["x"] == ("correct", "short_if_correct")
    assert next(iter(gated.stages)) == "short_if_correct"
    with pytest.raises(ChainError, match="does not read 'short'"):
        BASE.through("short", w=stage(batch_zscore, x="correct"))
    with pytest.raises(ChainError, match="no stage reads it"):
        BASE.through("long", w=stage(batch_zscore, x="long"))


def test_explain_lists_inputs_and_values_of_every_stage() -> None:
    t = Table.of(
        {
            "group": ("b", torch.tensor([0, 0])),
            "mask": ("b s", torch.ones(2, 2, dtype=torch.bool)),
            "correct": ("b", torch.tensor([1.0, 0.0])),
        }
    )
    c = chain(
        total=stage(weighted_sum, x=("correct",)),
        z=stage(group_zscore, x="total", eps=0.0),
        advantage=stage(spread, x="z"),
    )
    steps = explain(c, c.run(t), 1)
    assert [s.stage for s in steps] == ["total", "z", "advantage"]
    assert steps[1].inputs == {"total": 0.0, "group": 0}
    assert steps[1].value == pytest.approx(-0.70710678)
    assert steps[2].value == pytest.approx([-0.70710678] * 2)
    with pytest.raises(ChainError, match="rows count from 0"):
        explain(c, c.run(t), 2)
