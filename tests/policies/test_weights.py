"""Loading, snapshots, moving averages, adapters, and the errors of each."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from concordant.core.errors import CheckpointError, ConfigError
from concordant.core.seeds import Rng
from concordant.policies import LMPolicy, LoraOptions, SamplePlan
from tests.policies.models import make_tokenizer

PLAN = SamplePlan(4, 10)


def train_a_little(policy, table, rate=0.05):
    policy.logp(table).sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= rate * parameter.grad.sign()
            parameter.grad = None


def test_snapshot_is_frozen_and_stays(policy, tasks):
    table = policy.sample(tasks, PLAN, Rng(0))
    frozen = policy.snapshot()
    assert frozen.parameters() == [] and not frozen.logp(table).requires_grad
    assert torch.equal(frozen.score(table), policy.score(table))
    train_a_little(policy, table)
    torch.testing.assert_close(frozen.score(table), table["logp"], atol=1e-5, rtol=0)
    assert float((policy.score(table) - table["logp"]).abs().max()) > 0.1
    assert frozen.sample(tasks, PLAN, Rng(0))["tokens"].equal(table["tokens"])


def test_moving_average_shrinks_the_gap_geometrically(policy, tasks):
    average = policy.snapshot()
    start = {name: weight.clone() for name, weight in average.state_dict().items()}
    train_a_little(policy, policy.sample(tasks, PLAN, Rng(0)))
    for _ in range(5):
        average.ema_(policy, 0.8)
    for name, weight in average.state_dict().items():
        goal = policy.state_dict()[name]
        torch.testing.assert_close(weight, goal + 0.8**5 * (start[name] - goal), atol=1e-6, rtol=1e-5)
    again = average.snapshot()
    again.ema_(policy, 0.0)
    assert all(torch.equal(w, policy.state_dict()[n]) for n, w in again.state_dict().items())
    assert not torch.equal(average.state_dict()["lm_head.weight"], again.state_dict()["lm_head.weight"])
    with pytest.raises(ConfigError, match="decay must lie in"):
        average.ema_(policy, 1.1)


def test_state_round_trip_and_refusals(policy, policy_of, tasks):
    table = policy.sample(tasks, PLAN, Rng(0))
    train_a_little(policy, table)
    fresh = policy_of()
    fresh.load_state_dict({name: weight.clone() for name, weight in policy.state_dict().items()})
    assert torch.equal(fresh.score(table), policy.score(table))
    state = policy.state_dict()
    name = next(iter(state))
    with pytest.raises(
        CheckpointError, match=r"no trained weight 'lm_heat.weight'; did you mean 'lm_head.weight'"
    ):
        fresh.load_state_dict({**state, "lm_heat.weight": state[name]})
    with pytest.raises(CheckpointError, match="lacks the weight"):
        fresh.load_state_dict({key: weight for key, weight in state.items() if key != name})
    with pytest.raises(CheckpointError, match="has shape"):
        fresh.load_state_dict({**state, name: state[name][:1]})


def test_save_pretrained_is_a_model_folder(policy, tasks, tmp_path):
    table = policy.sample(tasks, PLAN, Rng(0))
    train_a_little(policy, table)
    policy.save_pretrained(tmp_path / "out")
    assert torch.equal(LMPolicy.from_pretrained(tmp_path / "out").score(table), policy.score(table))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config._attn_implementation == "sdpa"


def test_lora_trains_adapters_only(folder_of, tasks, tmp_path):
    plain = LMPolicy.from_pretrained(folder_of())
    policy = LMPolicy.from_pretrained(folder_of(), lora=LoraOptions(rank=4, alpha=8.0))
    assert policy.forward.packs and policy.names and all("lora_" in name for name in policy.names)
    table = policy.sample(tasks, PLAN, Rng(0))
    assert torch.equal(table["tokens"], plain.sample(tasks, PLAN, Rng(0))["tokens"]), (
        "adapters begin as nothing"
    )
    frozen = policy.snapshot()
    torch.testing.assert_close(frozen.score(table), plain.score(table), atol=1e-6, rtol=0)
    base = {n: p for n, p in policy.model.named_parameters() if "lora_" not in n}
    copied = dict(frozen.model.named_parameters())
    assert all(copied[name] is weight for name, weight in base.items()), "the base is shared"
    before = {name: weight.clone() for name, weight in base.items()}
    train_a_little(policy, table)
    train_a_little(policy, table)
    assert float((policy.score(table) - table["logp"]).abs().max()) > 0.01
    assert all(torch.equal(weight, before[name]) for name, weight in base.items())
    torch.testing.assert_close(frozen.score(table), table["logp"], atol=1e-5, rtol=0)
    frozen.ema_(policy, 0.0)
    torch.testing.assert_close(frozen.score(table), policy.score(table), atol=1e-6, rtol=0)
    policy.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_lora_refusals(folder_of):
    with pytest.raises(ConfigError, match="rank of at least 1, got 0"):
        LoraOptions(rank=0)
    with pytest.raises(ConfigError, match="LoRA targets"):
        LMPolicy.from_pretrained(folder_of(), lora=LoraOptions(targets=("no_such_layer",)))


def test_lower_precision(folder_of, tasks):
    policy = LMPolicy.from_pretrained(folder_of(), dtype="bfloat16")
    table = policy.sample(tasks, PLAN, Rng(0))
    assert policy.model.dtype == torch.bfloat16 and table["logp"].dtype == torch.float32
    assert float((policy.score(table) - table["logp"]).abs().max()) < 0.2
    frozen = policy.snapshot()
    frozen.ema_(policy, 0.0)
    with pytest.raises(ConfigError, match=r"moving average in torch.bfloat16.*float32"):
        frozen.ema_(policy, 0.9)


def test_loading_errors_say_what_to_do(folder_of, tmp_path):
    folder = folder_of()
    with pytest.raises(ConfigError, match=r"unknown dtype 'float31'; did you mean 'float32'"):
        LMPolicy.from_pretrained(folder, dtype="float31")
    with pytest.raises(ConfigError, match=r"device 'tpu7' cannot be used.*this machine has: cpu"):
        LMPolicy.from_pretrained(folder, device="tpu7")
    with pytest.raises(ConfigError, match=r"no model folder .*missing; give an existing folder or a hub id"):
        LMPolicy.from_pretrained(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"config.json is missing \(found: notes.txt\)"):
        LMPolicy.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot load .*nobody/nothing.*safetensors"):
        LMPolicy.from_pretrained("nobody/nothing")


def test_pickled_weights_are_refused(folder_of, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder_of())
    model.config.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled weights and remote code are refused"):
        LMPolicy.from_pretrained(tmp_path)


def test_recurrent_models_are_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1, eos_token_id=0))
    with pytest.raises(ConfigError, match=r"recurrent or linear-attention layers \(LinearAttentionLayer\)"):
        LMPolicy(model, make_tokenizer())
