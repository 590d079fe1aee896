"""VeRPO through its real chains: the sheet's example, what the controls pay for, and where all stay silent."""

import pytest
import torch

from concordant import recipes
from concordant.core.table import Table

ARMS = recipes.get("verpo").arms


def table_of(texts, solved=None):
    """One group; each text holds the results of a row's tests."""
    tests = torch.tensor([[float(c) for c in text] for text in texts], dtype=torch.float64)
    outcome = tests.all(1).double() if solved is None else torch.tensor(solved, dtype=torch.float64)
    return Table.of(
        {
            "tests": ("b u", tests),
            "flat_tests": ("b u", tests),
            "solved": ("b", outcome),
            "group": ("b", torch.full((len(texts),), 5)),
            "keep": ("b", torch.ones(len(texts), dtype=torch.bool)),
            "mask": ("b s", torch.ones(len(texts), 2, dtype=torch.bool)),
        }
    )


def run(arm, texts, solved=None):
    return ARMS[arm].chain.run(table_of(texts, solved))


def close(got, want, atol=2e-6):
    torch.testing.assert_close(got, torch.tensor(want, dtype=got.dtype), atol=atol, rtol=0.0)


FOUR = ("1110", "1100", "1000", "1111")


def test_the_example_of_the_sheet():
    out = run("verpo", FOUR)
    close(out["calibrated"][0], [0.129639, 0.205106, 0.338163, 0.581001])
    close(out["partial"], [0.672908, 0.334745, 0.129639, 1.253909])
    close(out["turn_advantage"], [0.075108, -0.263055, -0.468161, 0.656109])
    close(out["trajectory_advantage"], [-0.2375, -0.2375, -0.2375, 0.7125])
    close(out["advantage"][:, 1], [-0.162392, -0.500555, -0.705661, 1.368609])


def test_groups_that_nobody_solves_teach_verpo_but_not_the_outcome():
    unsolved = ("1110", "1100", "1000", "0000")
    assert run("grpo", unsolved)["advantage"].abs().max() == 0.0
    assert run("verpo", unsolved)["advantage"].abs().min() > 0.05


@pytest.mark.parametrize("arm", list(ARMS))
@pytest.mark.parametrize("texts", [("000",) * 4, ("111",) * 4, ("110",) * 4])
def test_every_arm_is_silent_where_all_rows_are_equal(arm, texts):
    assert run(arm, texts)["advantage"].tolist() == [[0.0, 0.0]] * 4


def test_the_frontier_test_outweighs_the_last_easy_one_only_with_density():
    """Eight easy tests and one hard: rows that fail the hard one, a row that has it but lacks four easy ones."""
    texts = ("111111110", "111111110", "111111110", "000011111")
    ranked = {arm: run(arm, texts)["advantage"][:, 0] for arm in ("verpo", "pass-rate")}
    assert ranked["verpo"][3] > 0 > ranked["verpo"][0]
    assert ranked["pass-rate"][3] < 0 < ranked["pass-rate"][0]


def test_the_pass_rate_control_is_the_centred_pass_rate_next_to_the_same_outcome():
    out = run("pass-rate", FOUR)
    close(out["turn_advantage"], [0.125, -0.125, -0.375, 0.375])
    close(out["trajectory_advantage"], [-0.2375, -0.2375, -0.2375, 0.7125])


def test_with_equally_hard_tests_density_changes_nothing():
    """Each test passed by two of four rows."""
    texts = ("1100", "0110", "0011", "1001")
    close(run("flat-verpo", texts)["partial"], run("flat-difficulty-only", texts)["partial"].tolist())
    skewed = run("flat-verpo", FOUR)["partial"] - run("flat-difficulty-only", FOUR)["partial"]
    assert skewed.abs().max() > 0.1


def test_the_local_arm_ignores_the_outcome():
    with_, without = (
        run("verpo-local", FOUR, solved)["advantage"] for solved in ([0, 0, 0, 1], [1, 1, 0, 0])
    )
    assert torch.equal(with_, without)
