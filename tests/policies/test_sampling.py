"""What sampled tables hold: prompts, ends, masks, addressing of randomness, greedy decoding."""

import pytest
import torch

from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng
from concordant.policies import LMPolicy, SamplePlan
from concordant.policies.cache import Selected, Slots
from concordant.policies.decode import choose
from concordant.policies.forward import Plain
from concordant.worlds.base import Task
from tests.policies.models import FAMILIES, TEMPLATE

PLAN = SamplePlan(group_size=6, max_new_tokens=12)


def completions(table):
    return [row[m].tolist() for row, m in zip(table["tokens"], table["mask"], strict=True)]


def test_columns_and_fields(policy, tasks):
    table = policy.sample(tasks, PLAN, Rng(1), first_id=100)
    assert table["id"].tolist() == list(range(100, 130))
    assert table["task"].tolist() == [task.id for task in tasks for _ in range(6)]
    assert table["group"].tolist() == [100 + i for i in range(5) for _ in range(6)]
    assert torch.equal(table["episode"], table["id"]) and bool(table["keep"].all())
    assert table.fields["answer"] == [task.fields["answer"] for task in tasks for _ in range(6)]
    assert table.fields["prompt"] == [task.prompt for task in tasks for _ in range(6)]
    assert table.axes("prompt_mask") == ("b", "q") and table.axes("logp") == ("b", "s")
    lengths = table["prompt_mask"].sum(1)
    assert lengths.tolist() == [len(task.prompt) for task in tasks for _ in range(6)]
    assert bool(table["prompt_mask"][:, -1].all()), "prompts are padded on the left"


@pytest.mark.parametrize("pad", [True, False])
def test_ends_masks_and_truncation(policy_of, tasks, pad):
    policy = policy_of(pad=pad)
    assert policy.tokenizer.pad_token_id == (23 if pad else None)
    table = policy.sample(tasks, SamplePlan(16, 12), Rng(2))
    mask, tokens, end = table["mask"], table["tokens"], policy.tokenizer.eos_token_id
    lengths = mask.sum(1)
    assert torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None]), "real tokens are contiguous"
    assert 0 < int(table["truncated"].sum()) < table.rows, "the test needs both kinds of rows"
    for row, (ids, truncated) in enumerate(zip(completions(table), table["truncated"].tolist(), strict=True)):
        assert (end in ids) == (not truncated)
        assert len(ids) == 12 if truncated else ids.index(end) == len(ids) - 1
        assert table.fields["completion"][row] == policy.tokenizer.decode(ids if truncated else ids[:-1])
    assert bool((tokens[~mask] == (23 if pad else end)).all()) and bool((table["logp"][~mask] == 0).all())
    assert bool((table["logp"][mask] < 0).all())


def test_task_tags_stay_in_the_text(policy):
    think = policy.tokenizer.convert_tokens_to_ids("<think>")
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
        policy.model.lm_head.weight[think] = 1.0
        policy.model.model.norm.weight.fill_(1.0)
    table = policy.sample([Task(0, "1", {})], SamplePlan(16, 3), Rng(0))
    assert any("<think>" in text for text in table.fields["completion"])


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_and_id_give_the_same_tokens_in_any_batch(policy_of, tasks, family):
    policy = policy_of(family)
    whole = policy.sample(tasks, PLAN, Rng(3))
    again = policy.sample(tasks, PLAN, Rng(3))
    assert torch.equal(whole["tokens"], again["tokens"]) and torch.equal(whole["logp"], again["logp"])
    for index in (1, 3):
        alone = policy.sample(tasks[index : index + 1], PLAN, Rng(3), first_id=6 * index)
        assert completions(alone) == completions(whole)[6 * index : 6 * index + 6]
        part = whole["logp"][6 * index : 6 * index + 6, : alone["logp"].shape[1]]
        torch.testing.assert_close(alone["logp"], part, atol=1e-5, rtol=0)
    pieces = policy.sample(tasks, SamplePlan(6, 12, batch_rows=7), Rng(3))
    assert completions(pieces) == completions(whole)


def test_streams_steps_and_ids_differ(policy, tasks):
    one = completions(policy.sample(tasks, PLAN, Rng(3)))
    for other in (Rng(4), Rng(3).at(1), Rng(3).child("evaluate")):
        assert completions(policy.sample(tasks, PLAN, other)) != one
    table = completions(policy.sample(tasks, PLAN, Rng(3), first_id=30))
    assert table != one
    assert one[12:18] != one[24:30], "equal prompts in two groups are sampled independently"


def test_choose_inverts_the_cumulative_distribution():
    logits = torch.tensor([0.5, 0.0, 0.2, 0.3]).log().expand(6, 4)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.69, 0.71, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, uniform, 1.0).tolist() == [0, 0, 2, 2, 3, 3]
    cold = torch.tensor([2.0, 1.0]).log().expand(2, 2)  # at temperature 1/2 the odds are 4 to 1
    assert choose(cold, torch.tensor([0.79, 0.81], dtype=torch.float64), 0.5).tolist() == [0, 1]
    assert choose(logits, uniform, 0).tolist() == [0] * 6


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(policy_of, tasks, family):
    policy = policy_of(family)
    table = policy.sample(tasks, SamplePlan(1, 12, temperature=0), Rng(0))
    for row, (task, ids) in enumerate(zip(tasks, completions(table), strict=True)):
        prompt = policy.tokenizer(task.prompt, return_tensors="pt")
        settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": 0, "pad_token_id": 0}
        written = policy.model.generate(**prompt, **settings)[0, prompt["input_ids"].shape[1] :].tolist()
        assert ids == written, f"row {row}"
    torch.testing.assert_close(
        policy.score(table), table["logp"], atol=1e-5, rtol=0
    )  # recorded at temperature 1


def test_chat_template(policy_of):
    policy = policy_of(template=TEMPLATE)
    messages = [
        {"role": "user", "content": "1+2"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "a"},
    ]
    table = policy.sample([Task(0, "1+2", {}), Task(1, messages, {})], SamplePlan(1, 4), Rng(0))
    assert table.fields["prompt"] == ["<u>1+2<a>", "<u>1+2<a>3<u>a<a>"]
    assert table["prompt_mask"].sum(1).tolist() == [5, 9]


def test_messages_without_a_template_are_refused(policy):
    with pytest.raises(DataError, match=r"prompt 1 is a list of chat messages.*no chat template"):
        policy.sample([Task(0, "1", {}), Task(1, [{"role": "user", "content": "1"}], {})], PLAN, Rng(0))


def test_prompts_that_do_not_fit_are_refused(policy):
    with pytest.raises(
        DataError, match=r"prompt 1 has 60 tokens; with max_new_tokens=12.*window of 64.*at most 52 tokens"
    ):
        policy.sample([Task(0, "1", {}), Task(1, "1" * 60, {})], PLAN, Rng(0))
    assert policy.sample([Task(0, "1" * 52, {})], PLAN, Rng(0)).rows == 6
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        policy.sample([Task(0, "", {})], PLAN, Rng(0))


def test_unusable_plans_and_tasks_are_refused(policy):
    with pytest.raises(ConfigError, match="group_size must be at least 1, got 0"):
        SamplePlan(0)
    with pytest.raises(ConfigError, match="temperature"):
        SamplePlan(temperature=float("nan"))
    with pytest.raises(DataError, match="at least one task"):
        policy.sample([], PLAN, Rng(0))
    with pytest.raises(DataError, match=r"task 1 has fields \['b'\]"):
        policy.sample([Task(0, "1", {"a": 1}), Task(1, "1", {"b": 1})], PLAN, Rng(0))
    with pytest.raises(DataError, match="named 'completion'"):
        policy.sample([Task(0, "1", {"completion": ""})], PLAN, Rng(0))


def test_without_end_tokens_every_row_is_truncated(policy, tasks):
    policy.model.generation_config.eos_token_id = None
    policy.tokenizer.eos_token = None
    table = policy.sample(tasks, PLAN, Rng(0))
    assert bool(table["truncated"].all()) and bool(table["mask"].all())


def test_all_end_tokens_of_the_generation_settings_count(policy: LMPolicy, tasks):
    policy.model.generation_config.eos_token_id = [5, 9]
    assert policy.stops == (0, 5, 9)
    table = policy.sample(tasks, SamplePlan(16, 12), Rng(0))
    last = {
        ids[-1] for ids, cut in zip(completions(table), table["truncated"].tolist(), strict=True) if not cut
    }
    assert last == {0, 5, 9}


@pytest.mark.parametrize("parents", [[0, 0, 0, 1, 3, 3], [3], [0, 1, 2, 3], [2, 2, 2], [1, 2, 2, 3, 3, 3]])
def test_both_caches_branch_alike(parents):
    states = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 3, 5)
    slots, selected, index = Slots(1, 6, 4), Selected(), torch.tensor(parents)
    for cache in (slots, selected):
        cache.update(states, states + 10, 0)
    place, plain = slots.branch(index), selected.branch(index)
    assert sorted(place.tolist()) == plain.tolist() == list(range(len(parents)))
    new = torch.full((len(parents), 2, 1, 5), 9.0)
    for ours, theirs in zip(slots.update(new, new, 0), selected.update(new, new, 0), strict=True):
        assert torch.equal(ours[place], theirs)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_short_step_computes_what_the_modules_compute(policy_of, family, padded):
    forward, generator = policy_of(family).forward, torch.Generator().manual_seed(0)
    prompt = torch.randint(5, 20, (3, 7), generator=generator)
    mask = torch.arange(7) >= torch.tensor([[0], [2 * padded], [5 * padded]])
    caches = [forward.new_cache(3, 6) for _ in range(2)]
    takes = [forward, forward.plain(13)]
    assert isinstance(takes[1], Plain)
    with torch.inference_mode():
        for cache in caches:
            forward.read(prompt, mask, cache)
        masks, positions = forward.step_masks(mask, 6), mask.sum(1)
        for t in range(6):
            tokens = torch.randint(5, 20, (3,), generator=generator)
            seen = None if masks is None else masks[:, : 8 + t]
            module, short = (
                take.step(tokens, seen, positions + t, c) for take, c in zip(takes, caches, strict=True)
            )
            torch.testing.assert_close(short, module, atol=1e-5, rtol=1e-5)


def test_models_that_were_changed_step_through_their_modules(policy_of):
    def short(policy):
        return policy.forward.plain(8)

    assert short(policy_of("Mistral")) is None
    policy = policy_of("Qwen3")
    handle = policy.model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out)
    assert short(policy) is None
    handle.remove()
    assert short(policy) is not None
    policy.model.lm_head.forward = policy.model.lm_head.forward
    assert short(policy) is None
    policy = policy_of("Qwen3")
    attention = policy.model.model.layers[0].self_attn
    attention.q_proj = torch.nn.Sequential(attention.q_proj)
    assert short(policy) is None
    policy = policy_of("Llama")
    policy.model.config.rope_parameters["rope_type"] = "dynamic"
    assert short(policy) is None
