"""Log-probabilities: equal to sampling, equal to a plain unpadded pass of the model, in value and in gradient."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from concordant.core.errors import DataError
from concordant.core.seeds import Rng
from concordant.policies import SamplePlan, prefixes
from concordant.policies.logprob import chosen_logp
from concordant.worlds.base import Task
from tests.policies.models import FAMILIES


def plain_logp(model, table, row):
    """The oracle: one unpadded row through the model's own forward."""
    prompt = table["prompt_tokens"][row][table["prompt_mask"][row]]
    length = int((table["mask"][row] * torch.arange(1, table["mask"].shape[1] + 1)).max())
    tokens = table["tokens"][row, :length]
    logits = model(input_ids=torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
    logp = (logits / table["temperature"][row]).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    full = torch.zeros(table["mask"].shape[1])
    full[:length] = logp
    return torch.where(table["mask"][row], full, 0.0)


def oracle(model, table):
    return torch.stack([plain_logp(model, table, row) for row in range(table.rows)])


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ratio_is_one_before_the_first_update(policy_of, tasks, family, temperature):
    policy = policy_of(family)
    assert policy.forward.packs == (family != "Mistral")
    table = policy.sample(tasks, SamplePlan(6, 14, temperature), Rng(1))
    ratio = (policy.logp(table) - table["logp"]).exp()
    assert bool(((ratio - 1).abs() < 1e-5).all())
    assert float(table["logp"][table["mask"]].std()) > 0.3, "the model must not be nearly uniform"


def test_values_and_gradients_equal_a_plain_unpadded_pass(policy_of, folder_of, tasks, family):
    policy, plain = (
        policy_of(family),
        AutoModelForCausalLM.from_pretrained(folder_of(family), attn_implementation="eager"),
    )
    table = policy.sample(tasks, SamplePlan(5, 14, 0.7), Rng(2))
    weight = torch.randn(table["mask"].shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = policy.logp(table), oracle(plain, table)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for (name, a), b in zip(policy.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            a.grad, b.grad, atol=3e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_untrained_tokens_between_trained_ones_are_context(policy_of, tasks, family):
    """A tool's answer inside a completion is read but has no log-probability."""
    policy = policy_of(family)
    policy.model.generation_config.eos_token_id = policy.tokenizer.eos_token = None
    table = policy.sample(tasks, SamplePlan(3, 10), Rng(3))
    mask = table["mask"].clone()
    mask[:, 2:5] = False
    mask[::2, 8:] = False
    mask[4] = False
    holes = table.with_columns({"mask": ("b s", mask)})
    torch.testing.assert_close(policy.logp(holes), torch.where(mask, table["logp"], 0.0), atol=1e-5, rtol=0)


def test_padding_and_row_order_change_nothing(policy_of, tasks, family):
    policy = policy_of(family)
    table = policy.sample(tasks, SamplePlan(4, 12), Rng(4))
    logp = policy.logp(table)
    order = torch.randperm(table.rows, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.logp(table.take(order)), logp[order], atol=1e-5, rtol=0)
    pad = torch.nn.functional.pad
    columns = {
        name: (table.axes(name), pad(table[name], (3, 0))) for name in ("prompt_tokens", "prompt_mask")
    }
    columns |= {name: (table.axes(name), pad(table[name], (0, 4))) for name in ("tokens", "mask", "logp")}
    wide = type(table).of({"temperature": ("b", table["temperature"])}).with_columns(columns)
    torch.testing.assert_close(policy.logp(wide), pad(logp, (0, 4)), atol=1e-5, rtol=0)


def test_score_is_logp_without_graph_in_pieces(policy, tasks):
    table = policy.sample(tasks, SamplePlan(4, 12), Rng(5))
    for tokens in (1, 60, 10**6):
        scored = policy.score(table, tokens=tokens)
        assert not scored.requires_grad
        torch.testing.assert_close(scored, table["logp"], atol=1e-5, rtol=0)
    (policy.logp(table) - scored).sum().backward()  # scores may take part in a loss


def test_rows_of_different_temperature_share_nothing(policy):
    tasks = [Task(0, "1+2=", {})]
    table = policy.sample(tasks, SamplePlan(8, 8), Rng(6))
    mixed = table.with_columns({"temperature": ("b", torch.tensor([1.0, 0.5] * 4))})
    cold = policy.logp(table.with_columns({"temperature": ("b", torch.full((8,), 0.5))}))
    want = torch.where(torch.arange(8)[:, None] % 2 == 0, policy.logp(table), cold)
    torch.testing.assert_close(policy.logp(mixed), want, atol=1e-5, rtol=0)


def test_rows_without_trained_tokens_give_zero(policy, tasks):
    table = policy.sample(tasks, SamplePlan(2, 8), Rng(7))
    empty = table.with_columns({"mask": ("b s", torch.zeros_like(table["mask"]))})
    assert not bool(policy.logp(empty).any()) and not bool(policy.score(empty).any())


def test_a_table_must_say_its_temperature(policy, tasks):
    table = policy.sample(tasks, SamplePlan(2, 8), Rng(7))
    columns = ("prompt_tokens", "prompt_mask", "tokens", "mask")
    bare = type(table).of({name: (" ".join(table.axes(name)), table[name]) for name in columns})
    with pytest.raises(DataError, match="no column 'temperature'"):
        policy.logp(bare)


def built(rows):
    """Build the tree of (prompt, completion) strings of digits."""
    q, s = (max(len(row[i]) for row in rows) for i in (0, 1))
    prompt, prompt_mask = (
        torch.zeros(len(rows), q, dtype=torch.int64),
        torch.zeros(len(rows), q, dtype=torch.bool),
    )
    tokens, mask = torch.zeros(len(rows), s, dtype=torch.int64), torch.zeros(len(rows), s, dtype=torch.bool)
    for i, (front, back) in enumerate(rows):
        prompt[i, q - len(front) :], prompt_mask[i, q - len(front) :] = (
            torch.tensor([int(c) for c in front]),
            True,
        )
        tokens[i, : len(back)], mask[i, : len(back)] = torch.tensor([int(c) for c in back]), True
    return prefixes.tree(prompt, prompt_mask, tokens, mask, torch.zeros(len(rows), dtype=torch.int64))


ROWS = [("12", "345"), ("12", "346"), ("12", "345"), ("2", "345")]


def test_tree_holds_each_prefix_once():
    tree = built(ROWS)
    # read: 1 12 123 1234 | 2 23 234; predicted: 123 1234 12345 12346 | 23 234 2345
    assert sorted(zip(tree.tokens.tolist(), tree.positions.tolist(), strict=True)) == [
        (1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (4, 2), (4, 3)
    ]  # fmt: skip
    assert sorted(tree.chosen.tolist()) == [3, 3, 4, 4, 5, 5, 6]
    assert tree.of_step[0].tolist() == tree.of_step[2].tolist()
    assert tree.of_step[0, 2] != tree.of_step[1, 2] and not set(tree.of_step[3].tolist()) & set(
        tree.of_step[0].tolist()
    )
    for step in range(3):
        assert tree.chosen[tree.of_step[1, step]] == int(ROWS[1][1][step])


def test_tree_survives_colliding_hashes(monkeypatch, policy, tasks):
    table = policy.sample(tasks, SamplePlan(3, 8), Rng(8))
    monkeypatch.setattr(prefixes, "mix", lambda x: torch.zeros_like(x))
    assert len(built(ROWS).tokens) == 4 + 4 + 4 + 3, "nothing is shared then"
    torch.testing.assert_close(policy.logp(table), table["logp"], atol=1e-5, rtol=0)


def test_kernel_in_pieces_equals_the_kernel_at_once(monkeypatch):
    logits, tokens = torch.randn(11, 7, dtype=torch.float64), torch.arange(11) % 7
    for temperature in (1.0, 0.3, torch.linspace(0.5, 2, 11)):
        whole = chosen_logp(logits, tokens, temperature)
        divisor = temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
        want = (logits.float() / divisor).log_softmax(-1)[torch.arange(11), tokens]
        torch.testing.assert_close(whole, want, atol=1e-6, rtol=0)
        monkeypatch.setattr("concordant.policies.logprob.CHUNK", 20)
        assert torch.equal(chosen_logp(logits, tokens, temperature), whole)
        monkeypatch.undo()
