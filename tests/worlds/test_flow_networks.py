"""Networks of the flow worlds: sizes, prompts, images, files."""

import math

import pytest
import torch

from concordant.core.errors import ConfigError, DataError
from concordant.policies.networks import (
    DiT,
    DiTConfig,
    MLPConfig,
    ResidualMLP,
    alpha_bars,
    check_files,
    load_network,
    save_network,
)
from concordant.worlds.flow_digits.prompts import ClassReader, Code, CodeReader, read_class, read_code


def make(kind):
    torch.manual_seed(0)
    return {
        "mlp": lambda: ResidualMLP(MLPConfig(), ClassReader()),
        "dit": lambda: DiT(DiTConfig(), ClassReader()),
    }[kind]()


def stir(network):
    """Give all weights a size: fresh transformers return zeros."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    return network.eval()


@pytest.mark.parametrize(("kind", "low", "high"), [("mlp", 440_000, 450_000), ("dit", 1_000_000, 1_200_000)])
def test_sizes_are_those_of_the_bed(kind, low, high):
    assert low < sum(p.numel() for p in make(kind).parameters()) < high


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_rows_do_not_depend_on_each_other_but_on_every_input(kind):
    network = stir(make(kind))
    x, time = torch.randn(6, 64), torch.rand(6)
    codes = network.encode([f"a handwritten {i}" for i in range(6)])
    out = network(x, time, codes)
    assert out.shape == (6, 64)
    assert out.dtype == torch.float32
    order = torch.tensor([3, 0, 5])
    assert torch.allclose(network(x[order], time[order], codes[order]), out[order], atol=1e-5)
    assert not torch.allclose(network(x, time, codes.roll(1, 0)), out, atol=1e-3)
    assert not torch.allclose(network(x, time.roll(1), codes), out, atol=1e-3)
    assert not torch.allclose(network(x, time, network.null.expand(6, -1)), out, atol=1e-3)
    moved = x.clone()
    moved[:, 63] += 1.0  # the last pixel reaches the first one
    assert not torch.allclose(network(moved, time, codes)[:, 0], out[:, 0], atol=1e-5)
    with pytest.raises(DataError, match=r"shape \(n, 64\)"):
        network(torch.zeros(6, 8, 8), time, codes)


def test_patches_go_back_to_where_they_came_from():
    """With layers that do nothing and a linear map that is the identity on patches, the network is the identity."""
    config = DiTConfig(width=4, heads=1, layers=0)
    network = DiT(config, ClassReader())
    with torch.no_grad():
        network.enter.weight.copy_(torch.eye(4))
        network.enter.bias.zero_()
        network.place.zero_()
        network.out.weight.copy_(torch.eye(4))
    x = torch.arange(64.0).view(1, 64)
    got = network(x, torch.zeros(1), network.null[None]).view(4, 2, 4, 2)
    patches = x.view(4, 2, 4, 2).transpose(1, 2)
    want = torch.nn.functional.layer_norm(patches.reshape(4, 4, 4), (4,)).view(4, 4, 2, 2).transpose(1, 2)
    assert torch.allclose(got, want, atol=1e-5)


def test_images_are_clamped_and_what_is_not_finite_is_missing():
    network = make("mlp")
    x = torch.zeros(2, 64)
    x[0, :4] = torch.tensor([-1.0, 1.0, 3.0, -9.0])
    x[1, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    shown = network.decode(x)
    assert shown.shape == (2, 8, 8, 1)
    assert shown[0, 0, :5, 0].tolist() == [0.0, 1.0, 1.0, 0.0, 0.5]
    assert shown[1, 0, :, 0].isnan().tolist() == [True] * 3 + [False] * 5


def test_prompts():
    assert read_class("a handwritten 7") == 7
    assert read_code("a handwritten 7, thickness -0.50, slant 1.25") == Code(7, -0.5, 1.25)
    code = Code(3, -0.25, 1.5)
    assert read_code(code.text) == code
    codes = CodeReader().encode([code.text])
    assert codes[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, -0.25, 1.5]
    assert ClassReader().encode([]).shape == (0, 10)
    for bad in ("a handwritten 12", "3", None, [{"role": "user", "content": "3"}]):
        with pytest.raises(DataError, match="a handwritten D"):
            make("mlp").encode([bad])
    with pytest.raises(DataError, match="thickness X, slant Y"):
        CodeReader().encode(["a handwritten 3"])


def test_saving_rounds_to_float16_and_files_are_checked(tmp_path):
    network = stir(make("mlp"))
    save_network(network, tmp_path, "first", betas={"first": 1e-4, "last": 0.02, "timesteps": 10})
    again = load_network(tmp_path, "first", ClassReader())
    for name, weight in again.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, network.state_dict()[name].half().float())
    assert again.alpha_bar == alpha_bars(1e-4, 0.02, 10)
    assert all(p.requires_grad for p in again.parameters())
    assert check_files(tmp_path) == []
    save_network(make("dit"), tmp_path, "second")
    assert load_network(tmp_path, "second", ClassReader()).alpha_bar == ()
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        load_network(tmp_path, "secon", ClassReader())
    with pytest.raises(ConfigError, match="conditioned on 10 numbers"):
        load_network(tmp_path, "first", CodeReader())
    (tmp_path / "second.safetensors").write_bytes((tmp_path / "first.safetensors").read_bytes())
    (tmp_path / "first.safetensors").unlink()
    assert check_files(tmp_path) == [
        "first.safetensors is missing",
        "second.safetensors is not the file that config.json describes",
    ]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="patches of 3"):
        DiTConfig(patch=3)
    with pytest.raises(ConfigError, match="5 heads"):
        DiTConfig(heads=5)
