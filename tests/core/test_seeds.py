"""Random numbers are a function of their address."""

import pytest
import torch
from scipy import stats

from concordant.core.seeds import Progress, Rng, address


def test_numbers_follow_ids_not_positions() -> None:
    rng, ids = Rng(1, "a", 2), torch.tensor([5, 9, 1_000_000_007])
    assert torch.equal(rng.uniform(ids)[[2, 0]], rng.uniform(ids[[2, 0]]))
    assert torch.equal(rng.uniform(ids, 4)[1], rng.uniform(ids[1:2], 7)[0, :4])


def test_streams_steps_and_seeds_are_apart() -> None:
    ids = torch.arange(100)
    streams = [Rng(0), Rng(1), Rng(0, "a"), Rng(0).child("a"), Rng(0).child("b"), Rng(0, "", 1)]
    values = [tuple(r.uniform(ids).tolist()) for r in streams]
    assert len(set(values)) == 6
    assert Rng(0, "x").at(3) == Rng(0, "x", 3)


def test_the_address_is_stable_across_processes_and_versions() -> None:
    assert address("a", 1) == -4522502111639797375
    assert Rng(7, "stream", 3).uniform(torch.tensor([0, 1])).tolist() == [
        0.7544016497295531,
        0.3177546799206936,
    ]


def test_numbers_are_uniform_and_independent() -> None:
    values = Rng(3).uniform(torch.arange(2000), 8)
    assert (values >= 0).all() and (values < 1).all()
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
    correlation = torch.corrcoef(values.T) - torch.eye(8)
    assert correlation.abs().max() < 0.1


def test_progress_has_a_fraction_even_without_steps() -> None:
    assert Progress(1, 4).fraction == 0.25
    assert Progress(0, 0).fraction == 0.0


def test_normal_numbers_have_the_moments_of_a_standard_normal_and_belong_to_their_row():
    rng, ids = Rng(3), torch.arange(4000)
    x = rng.normal(ids, 25)
    assert x.dtype == torch.float32
    assert bool(x.isfinite().all())
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert float(x.double().pow(power).mean()) == pytest.approx(moment, abs=0.05)
    correlation = torch.corrcoef(x.double().T) - torch.eye(25)
    assert float(correlation.abs().max()) < 0.08
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rng.normal(ids[order], 25), x[order])
