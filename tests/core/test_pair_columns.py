"""Pair columns: which pairs a table keeps when rows are taken or stacked, and what is missing for a pair."""

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from concordant.core.chain import Context, chain, stage
from concordant.core.edits import explain
from concordant.core.errors import ChainError, DataError
from concordant.core.seeds import Progress, Rng
from concordant.core.table import Table
from concordant.kernels import compare_values, same_group_pairs, win_rate

NAN = float("nan")


def table(left=(0, 0, 1, 3), right=(1, 2, 2, 4), name="", **more):
    rows = 5
    columns = {
        "id": ("b", torch.arange(rows) + 10),
        f"{name}left": ("p", torch.tensor(left)),
        f"{name}right": ("p", torch.tensor(right)),
        "gap": ("p", torch.arange(len(left)).float()),
        "trace": ("p s", torch.arange(2.0 * len(left)).reshape(-1, 2)),
    }
    return Table.of(columns | more, {"text": list("abcde")})


def named(t, name=""):
    """Pairs by the ids of their ends."""
    return list(zip(t["id"][t[f"{name}left"]].tolist(), t["id"][t[f"{name}right"]].tolist(), strict=True))


@pytest.mark.parametrize("name", ["", "pairs.", "judge.pairs."])
def test_pairs_stay_when_both_ends_are_taken_and_point_at_the_same_rows(name):
    taken = table(name=name).take(torch.tensor([4, 2, 3, 0]))
    assert named(taken, name) == [(10, 12), (13, 14)]
    assert taken[f"{name}left"].tolist() == [3, 2]
    assert taken["gap"].tolist() == [1.0, 3.0]
    assert taken["trace"].tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert taken.fields["text"] == list("ecda")


def test_a_mask_takes_like_an_index_and_all_rows_change_nothing():
    t = table()
    assert named(t.take(torch.tensor([True, True, False, True, False]))) == [(10, 11)]
    whole = t.take(torch.arange(5))
    assert all(torch.equal(whole[name], t[name]) for name in t.names)
    nobody = t.take(torch.zeros(5, dtype=torch.bool))
    assert nobody.sizes == {"b": 0, "p": 0, "s": 2}
    again = nobody.take(torch.zeros(0, dtype=torch.long))
    assert again.sizes == {"b": 0, "p": 0, "s": 2}


def test_a_pair_without_an_end_goes_and_a_row_taken_twice_keeps_its_pairs_once():
    t = table(left=(0, -1, 1), right=(1, 2, -1))
    assert named(t.take(torch.arange(5))) == [(10, 11)]
    twice = table().take(torch.tensor([1, 0, 1, 0]))
    assert twice["left"].tolist() == [1] and twice["right"].tolist() == [0]


def test_a_pair_stays_only_if_all_its_ends_are_taken():
    both = table(
        **{"old.left": ("p", torch.tensor([0, 0, 1, 0])), "old.right": ("p", torch.tensor([1, 2, 2, 1]))}
    )
    taken = both.take(torch.tensor([0, 3, 4, 1]))
    assert named(taken) == [(10, 11), (13, 14)] and named(taken, "old.") == [(10, 11), (10, 11)]
    assert named(both.take(torch.tensor([3, 4]))) == []


def test_columns_along_neither_rows_nor_pairs_are_left_out():
    t = Table.of(
        {"id": ("b", torch.arange(2)), "level": ("s", torch.ones(3)), "x": ("k b", torch.ones(2, 2))}
    )
    assert t.take(torch.tensor([1])).schema == {"id": ("b",), "x": ("k", "b")}
    with pytest.raises(DataError, match=r"cannot concat 'level' \['s'\]"):
        Table.concat([t, t])


def test_pairs_that_name_no_rows_are_refused():
    lost = Table.of({"id": ("b", torch.arange(3)), "gap": ("p", torch.ones(2)), "left": ("p", torch.ones(2))})
    for doing in (lambda: lost.take(torch.tensor([0])), lambda: Table.concat([lost, lost])):
        with pytest.raises(DataError, match=r"\['gap', 'left'\] are pair columns.*same_group_pairs"):
            doing()


@pytest.mark.parametrize("name", ["", "pairs."])
def test_stacked_tables_keep_their_pairs(name):
    a = table(name=name)
    b = table(left=(4, -1), right=(0, 1), name=name).with_columns({"id": ("b", torch.arange(5) + 50)})
    both = Table.concat([a, b, a.take(torch.tensor([1, 0]))])
    assert both[f"{name}left"].tolist() == [0, 0, 1, 3, 9, -1, 11]
    assert both[f"{name}right"].tolist() == [1, 2, 2, 4, 5, 6, 10]
    assert named(both, name)[4] == (54, 50) and named(both, name)[6] == (10, 11)
    assert both["trace"].shape == (7, 2)
    back = both.take(torch.arange(5))
    assert named(back, name) == named(a, name)


def test_latent_dimensions_may_differ_between_columns():
    t = Table.of({"latent": ("b s d", torch.ones(2, 3, 4)), "sample": ("b d", torch.ones(2, 7))})
    assert t.take(torch.tensor([1]))["latent"].shape == (1, 3, 4) and "d" not in t.sizes
    assert Table.concat([t, t])["sample"].shape == (4, 7)


# ---- what the binder calls valid ----------------------------------------------------------------------------------


def valid_pairs(
    x: Float[Tensor, "p"],
    left: Int[Tensor, "p"],
    right: Int[Tensor, "p"],
    group: Int[Tensor, "b"],
    weight: Float[Tensor, "b s"] | None = None,
    valid: Bool[Tensor, "p"] | None = None,
) -> Float[Tensor, "p"]:
    """1 for valid pairs."""
    assert valid is not None and valid.shape == x.shape and not x.isnan().any()
    return valid.to(x.dtype)


def pair_share(
    x: Float[Tensor, "b"], outcome: Float[Tensor, "p"], valid: Bool[Tensor, "b"] | None = None
) -> Float[Tensor, "b"]:
    """Valid rows get how many outcomes are there: rows first, pairs beside them."""
    assert valid is not None
    return torch.where(valid, (~outcome.isnan()).sum().to(x.dtype), NAN)


def valid_of(t, **reads):
    return chain(v=stage(valid_pairs, x="gap", **reads)).run(t)["v"].bool().tolist()


def test_keep_ids_and_values_of_rows_count_at_both_ends_of_a_pair_only():
    t = table().with_columns({"group": ("b", torch.zeros(5).long())})
    assert valid_of(t) == [True] * 4
    keep = torch.tensor([True, False, True, True, True])
    assert valid_of(t.with_columns({"keep": ("b", keep)})) == [False, True, False, True]
    assert valid_of(t.with_columns({"group": ("b", torch.tensor([0, 0, -1, 1, 1]))})) == [
        True,
        False,
        False,
        True,
    ]
    gap = t["gap"].clone()
    gap[3] = NAN
    assert valid_of(t.with_columns({"gap": ("p", gap)})) == [True, True, True, False]
    weight = torch.ones(5, 2)
    weight[4, 1] = NAN
    assert valid_of(t.with_columns({"weight": ("b s", weight)}), weight="weight") == [True, True, True, False]


def test_the_ends_that_the_stage_is_given_go_before_columns_of_that_name():
    t = table(name="pairs.").with_columns({"group": ("b", torch.zeros(5).long())})
    keep = torch.tensor([False, True, True, True, True])
    given = {"left": "pairs.left", "right": "pairs.right"}
    t = t.with_columns({"keep": ("b", keep)})
    assert valid_of(t, **given) == [False, False, True, True]
    other = {"left": ("p", torch.tensor([0, 1, 2, 3])), "right": ("p", torch.tensor([4, 4, 4, 4]))}
    assert valid_of(t.with_columns(other), **given) == [False, False, True, True]
    assert valid_of(t.with_columns(other)) == [False, True, True, True]
    with pytest.raises(ChainError, match="no column 'left' for 'left'"):
        valid_of(t)
    gone = table(left=(-1, 0, 1, 3), name="pairs.").with_columns({"group": ("b", torch.zeros(5).long())})
    assert valid_of(gone, **given) == [False, True, True, True]


def test_a_missing_pair_is_no_missing_row():
    t = table().with_columns(
        {
            "r": ("b", torch.tensor([1.0, NAN, 1.0, 1.0, 1.0])),
            "outcome": ("p", torch.tensor([NAN, 1.0, 0.0, NAN])),
        }
    )
    made = chain(n=stage(pair_share, x="r")).run(t)["n"]
    assert made.isnan().tolist() == [False, True, False, False, False] and made[0] == 2


def test_an_explanation_shows_the_pairs_that_the_row_is_in():
    rows = {"group": torch.tensor([0, 0, 0, 1, 1]), "score": torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0])}
    ends = {"left": "pairs.left", "right": "pairs.right"}
    method = chain(
        pairs=stage(same_group_pairs),
        won=stage(compare_values, x="score", **ends),
        wins=stage(win_rate, outcome="won", **ends),
    )
    given = Table.of({name: ("b", values) for name, values in rows.items()})
    done, _ = method.apply(given, Context(Rng(), Progress(), method.init()))
    steps = {step.stage: step for step in explain(method, done, 2)}
    assert steps["wins"].inputs["pairs.left"] == [0, 1]
    assert steps["wins"].inputs["pairs.right"] == [2, 2]
    assert steps["wins"].inputs["won"] == [1.0, 0.0]
    assert steps["wins"].value == 0.5
