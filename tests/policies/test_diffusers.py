"""Pipelines of diffusers as policies: the same images as the pipeline's own, ratio 1, adapters, settings, errors."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="diffusers is not installed")

import diffusers
from peft import PeftModel

from concordant.core.chain import part
from concordant.core.errors import ConfigError, DataError
from concordant.core.recipe import TrainConfig
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels import clip_term
from concordant.loops.update import backward, update
from concordant.objectives import PolicyGradient
from concordant.policies.flow import FlowPlan
from concordant.policies.flow.diffusers import DiffusersFlowPolicy, PipelineSchedule
from concordant.policies.load import LoraOptions
from concordant.recipes.flow_grpo import flow_grpo
from tests.tiny_pipelines import SIZE, make_flux, make_sd3

LORA = LoraOptions(rank=3, alpha=6.0)
LENGTH = 16
ODE = FlowPlan(2, 4, noise=0.0)
SDE = FlowPlan(4, 4, noise=0.7)


@dataclass(frozen=True)
class Task:
    id: int
    prompt: str
    fields: dict[str, Any] = field(default_factory=dict)


TASKS = [Task(3, "a red cat"), Task(4, "two dogs in a very long row of houses")]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[Any, ...], Path] = {}

    def get(family: str, **options: Any) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("pipeline") / family
            made[key] = (make_sd3 if family == "sd3" else make_flux)(folder, **options)
        return made[key]

    return get


@pytest.fixture
def policy_of(folder_of: Callable[..., Path]) -> Callable[..., DiffusersFlowPolicy]:
    def get(family: str, make: dict[str, Any] | None = None, **options: Any) -> DiffusersFlowPolicy:
        options = {"size": SIZE, "max_sequence_length": LENGTH, **options}
        return DiffusersFlowPolicy.from_pretrained(folder_of(family, **(make or {})), **options)

    return get


def pipeline(folder: Path, **parts: Any) -> Any:
    """The pipeline as diffusers loads it."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if index.get(name, [0, 0])[1] is None}
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder, **absent, **parts)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def own_images(pipe: Any, start: Tensor, steps: int, **guidance: Any) -> np.ndarray:
    """What the pipeline itself makes of that start, two images for each task."""
    flux = isinstance(pipe, diffusers.FluxPipeline)
    height, width = SIZE[0] // 2, SIZE[1] // 2
    shape = (len(start), height * width // 4, 16) if flux else (len(start), 4, height, width)
    prompts = [task.prompt for task in TASKS for _ in range(len(start) // len(TASKS))]
    return pipe(
        prompts, height=SIZE[0], width=SIZE[1], num_inference_steps=steps, latents=start.reshape(shape),
        max_sequence_length=LENGTH, output_type="np", **guidance,
    ).images  # fmt: skip


def stir(policy: DiffusersFlowPolicy, size: float = 0.3) -> DiffusersFlowPolicy:
    """Move the trained weights, so that adapters have an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator) * weight.std().clamp(min=0.1))
    return policy


DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64, "max_shift": 1.4}
CASES = [
    ("sd3", {}, 4.5, {"guidance_scale": 4.5}),
    ("sd3", {"t5_too": False}, 1.0, {"guidance_scale": 1.0}),
    ("sd3", DYNAMIC, 2.0, {"guidance_scale": 2.0}),
    ("flux", {}, 3.5, {"guidance_scale": 3.5}),
    ("flux", {"guided": False}, None, {}),
    ("flux", {"guided": False}, 2.5, {"true_cfg_scale": 2.5, "negative_prompt": [""] * 4}),
    ("flux", {"use_dynamic_shifting": False}, 1.5, {"guidance_scale": 1.5}),
]


@pytest.mark.parametrize(("family", "make", "guidance", "asked"), CASES)
def test_without_noise_images_are_those_of_the_pipeline(
    family: str, make: Any, guidance: Any, asked: Any, folder_of: Any, policy_of: Any
) -> None:
    policy, rng = policy_of(family, make, guidance=guidance), Rng(5)
    table = policy.sample(TASKS, ODE, rng)
    pipe = pipeline(folder_of(family, **make))
    theirs = own_images(pipe, policy.start(table["seed"], rng), ODE.steps, **asked)
    ours = np.stack(table.fields["image"])
    assert ours.shape == (4, *SIZE, 3) == theirs.shape
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(theirs - theirs.mean(0)).max() > 0.01, "images must differ for this to say anything"
    assert policy.evaluations == 4 * 4 * (2 if policy.guidance != 1 else 1)


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        ("sd3", {"shift": 5.0}),
        ("sd3", DYNAMIC),
        ("sd3", {"use_karras_sigmas": True}),
        ("flux", {}),
        ("flux", {"use_dynamic_shifting": False, "shift": 1.7}),
        ("flux", {"time_shift_type": "linear"}),
        ("flux", {"shift_terminal": 0.1}),
    ],
)
def test_noise_levels_are_those_of_the_pipeline(
    family: str, scheduler: Any, policy_of: Any, folder_of: Any
) -> None:
    policy, pipe = policy_of(family, scheduler), pipeline(folder_of(family, **scheduler))
    for steps in (1, 2, 7):
        if steps == 1 and "shift_terminal" in scheduler:
            continue  # one step cannot be stretched: the scheduler divides by zero
        own_images(pipe, torch.zeros(2, policy.latent_dims), steps)
        sigmas = policy.schedule.sigmas(steps)
        assert torch.equal(sigmas.float(), pipe.scheduler.sigmas.float())
        assert (len(sigmas), sigmas[0], sigmas[-1]) == (steps + 1, 1, 0)
        plan = policy.schedule.steps(FlowPlan(1, steps, noise=0.0))
        torch.testing.assert_close(plan.coef_v[0], sigmas.diff().float())
        if family == "flux" and "shift_terminal" not in scheduler:
            k, given = policy.schedule.shift, torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
            torch.testing.assert_close(sigmas[:-1], k * given / (1 + (k - 1) * given), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_fresh_rows_have_ratio_one_and_batches_do_not_matter(family: str, lora: Any, policy_of: Any) -> None:
    policy = stir(policy_of(family, lora=lora, batch_rows=3), 0.1)
    table = policy.sample(TASKS, SDE, Rng(1))
    assert table["mask"].sum(1).tolist() == [3] * 8
    again = policy.rescore(table)["logp"]
    assert again.requires_grad
    assert (again - table["logp"]).abs().max() < 1e-5
    assert (policy.score(table) - table["logp"]).abs().max() < 1e-5
    half = policy.sample(TASKS[1:], SDE, Rng(1), first_id=4)
    torch.testing.assert_close(half["sample"], table["sample"][4:], rtol=1e-4, atol=1e-4)


def loss_gradient(policy: DiffusersFlowPolicy, table: Table) -> dict[str, Tensor]:
    """Gradient of the masked log-probabilities, by name."""
    policy.model.zero_grad()
    sign = torch.tensor([1.0, -1.0]).repeat(table.rows // 2)
    (policy.rescore(table)["logp"] * sign[:, None]).sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_only_adapters_are_trained_and_recompute_gives_their_gradient(family: str, policy_of: Any) -> None:
    policy = stir(policy_of(family, lora=LORA))
    table = policy.sample(TASKS, SDE, Rng(2))
    found = loss_gradient(policy, table)
    assert found.keys() <= set(policy.names)
    assert policy.names == tuple(policy.state_dict())
    assert all("lora_" in name for name in policy.names)
    assert {name.split(".lora_")[0].rsplit("attn.")[-1] for name in policy.names} == {
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"
    }  # fmt: skip
    silent = set(policy.names) - {name for name, gradient in found.items() if gradient.abs().max() > 0}
    # the last block of SD3 throws the stream of text away: its queries have no effect
    assert all(family == "sd3" and "blocks.1.attn.add_q_proj" in name for name in silent), silent
    policy.recompute = 5
    for name, gradient in loss_gradient(policy, table).items():
        torch.testing.assert_close(gradient, found[name], rtol=1e-4, atol=1e-6)


def images_of(policy: DiffusersFlowPolicy) -> np.ndarray:
    return np.stack(policy.sample(TASKS, ODE, Rng(9)).fields["image"])


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_a_snapshot_stays_and_follows_only_on_purpose(lora: Any, policy_of: Any) -> None:
    policy = stir(policy_of("flux", lora=lora))
    before, frozen = images_of(policy), policy.snapshot()
    assert frozen.parameters() == []
    assert frozen.model.frozen is policy.model.frozen, "text encoders and decoder are shared"
    if lora:
        shared = {p.data_ptr() for n, p in policy.model.named_parameters() if "lora_" not in n}
        assert shared == {p.data_ptr() for n, p in frozen.model.named_parameters() if "lora_" not in n}
    stir(policy)
    assert np.abs(images_of(policy) - before).max() > 1e-3
    assert np.array_equal(images_of(frozen), before)
    assert frozen.settings == policy.settings
    frozen.ema_(policy, 0.0)
    assert np.array_equal(images_of(frozen), images_of(policy))
    other = policy_of("flux", lora=lora)
    other.load_state_dict(policy.state_dict())
    assert np.array_equal(images_of(other), images_of(policy))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_adapters_on_disk(family: str, policy_of: Any, folder_of: Any, tmp_path: Path) -> None:
    policy = stir(policy_of(family, lora=LORA, guidance=2.0))
    policy.save_pretrained(tmp_path / "a")
    assert {file.name for file in (tmp_path / "a").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    options: dict[str, Any] = {"size": SIZE, "max_sequence_length": LENGTH, "guidance": 2.0}
    back = DiffusersFlowPolicy.from_pretrained(tmp_path / "a", **options)
    assert back.names == policy.names
    assert all(p.requires_grad for n, p in back.model.named_parameters() if "lora_" in n)
    assert np.array_equal(images_of(back), images_of(policy))
    back.snapshot().save_pretrained(tmp_path / "b")
    assert np.array_equal(
        images_of(DiffusersFlowPolicy.from_pretrained(tmp_path / "b", **options)), images_of(policy)
    )
    pipe = pipeline(folder_of(family))  # and without this library
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, tmp_path / "a").merge_and_unload()
    start = policy.start(torch.arange(4), Rng(9))
    theirs = own_images(pipe, start, ODE.steps, guidance_scale=2.0)
    assert np.abs(theirs - images_of(policy)).max() < 1e-4
    with pytest.raises(ConfigError, match="adapters already"):
        DiffusersFlowPolicy.from_pretrained(tmp_path / "a", lora=LORA)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_whole_transformer_on_disk(family: str, policy_of: Any, folder_of: Any, tmp_path: Path) -> None:
    policy = stir(policy_of(family, guidance=2.0), 0.1)
    assert set(policy.names) == {f"transformer.{n}" for n, _ in policy.model.transformer.named_parameters()}
    policy.save_pretrained(tmp_path / "t")
    options: dict[str, Any] = {"size": SIZE, "max_sequence_length": LENGTH, "guidance": 2.0}
    back = DiffusersFlowPolicy.from_pretrained(tmp_path / "t", **options)
    assert np.array_equal(images_of(back), images_of(policy))
    kind = type(policy.model.transformer)
    pipe = pipeline(folder_of(family), transformer=kind.from_pretrained(tmp_path / "t"))
    theirs = own_images(pipe, policy.start(torch.arange(4), Rng(9)), ODE.steps, guidance_scale=2.0)
    assert np.abs(theirs - images_of(policy)).max() < 1e-4
    further = DiffusersFlowPolicy.from_pretrained(tmp_path / "t", lora=LORA, **options)
    assert np.abs(images_of(further) - images_of(policy)).max() < 1e-5, "new adapters have no effect at first"
    note = tmp_path / "t" / "base_pipeline.json"
    note.write_text(json.dumps({"folder": str(tmp_path / "gone")}))
    with pytest.raises(ConfigError, match=r"gone, which is not there; bring it back, or name its new place"):
        DiffusersFlowPolicy.from_pretrained(tmp_path / "t")


def test_frozen_parts_in_bfloat16(policy_of: Any) -> None:
    for family in ("sd3", "flux"):
        policy = stir(policy_of(family, lora=LORA, dtype="bfloat16"), 0.1)
        kinds = {"lora_" in name: p.dtype for name, p in policy.model.named_parameters()}
        assert kinds == {True: torch.float32, False: torch.bfloat16}
        parts = policy.model.frozen.pipeline
        assert (parts.vae.dtype, parts.text_encoder.dtype) == (torch.float32, torch.bfloat16)
        table = policy.sample(TASKS, SDE, Rng(1))
        assert {table[name].dtype for name in ("latent", "logp", "sample", "std")} == {torch.float32}
        assert (policy.rescore(table)["logp"] - table["logp"]).abs().max() < 1e-3
        assert all(g.dtype == torch.float32 for g in loss_gradient(policy, table).values())
        exact = stir(policy_of(family, lora=LORA), 0.1)
        near, true = images_of(policy), images_of(exact)
        assert 0 < np.abs(near - true).max() < 0.1


def test_weights_that_are_trained_stay_float32(policy_of: Any) -> None:
    policy = policy_of("sd3", dtype="bfloat16", guidance=1.0)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    with torch.no_grad():
        condition, x = policy.encode(["a"]), policy.start(torch.arange(1), Rng(0))
        out, exact = policy.predict(x, torch.ones(1), condition), policy_of("sd3", guidance=1.0)
        far = (out - exact.predict(x, torch.ones(1), exact.encode(["a"]))).abs().max()
    assert out.dtype == torch.float32
    assert 1e-5 < far < 0.1, "the products inside are bfloat16"


def test_rows_of_other_settings_are_refused_with_both_values(policy_of: Any) -> None:
    rows = policy_of("sd3").sample(TASKS, SDE, Rng(0))
    with pytest.raises(DataError, match=r"sampled with shift 3, .* scores with shift 5"):
        policy_of("sd3", {"shift": 5.0}).rescore(rows)
    with pytest.raises(DataError, match=r"sampled with guidance 7, .* with guidance 2"):
        policy_of("sd3", guidance=2.0).rescore(rows)
    with pytest.raises(DataError, match=r"max_sequence_length 16, .* 12"):
        policy_of("sd3", max_sequence_length=12).rescore(rows)
    with pytest.raises(DataError, match=r"sigma_spacing 0, .* sigma_spacing 1"):
        policy_of("sd3", {"use_karras_sigmas": True}).rescore(rows)
    with pytest.raises(DataError, match=r"latents of 16 x 16 images have shape \(n, 256\), got \(\d+, 384\)"):
        policy_of("sd3", size=(16, 16), guidance=7.0).rescore(rows)
    rows = policy_of("flux").sample(TASKS, SDE, Rng(0))
    with pytest.raises(DataError, match=r"embedded_guidance 3.5, .* embedded_guidance 1"):
        policy_of("flux", guidance=1.0).rescore(rows)
    with pytest.raises(DataError, match=r"shift 1\.98519, .* shift 1\.80915"):
        policy_of("flux", size=(16, 16)).rescore(rows)  # dynamic: the shift follows from the size


def test_texts_are_encoded_once_and_forgotten_last_used_first(policy_of: Any, monkeypatch: Any) -> None:
    policy, asked = policy_of("flux", guidance=2.0), []
    frozen, real = policy.model.frozen, policy.model.frozen.pipeline.encode_prompt

    def counted(text: str, *rest: Any, **options: Any) -> Any:
        asked.append(text)
        return real(text, *rest, **options)

    monkeypatch.setattr(frozen.pipeline, "encode_prompt", counted)
    monkeypatch.setattr("concordant.policies.flow.pipeline_networks.KEPT_TEXTS", 2)
    condition = policy.encode(["a", "b", "a"])
    assert condition.tolist() == [0, 1, 0]
    x, time = policy.start(torch.arange(3), Rng(0)), torch.ones(3)
    out = policy.predict(x, time, condition)
    assert asked == ["a", "b"]
    tokens, pooled = frozen.encodings([0, 1, 0], policy.model._text)
    assert (tokens.shape, pooled.shape) == ((3, LENGTH, 32), (3, 16))
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    assert not tokens.requires_grad
    policy.snapshot().predict(x, time, policy.encode(["a", "c", "a"]))
    assert asked == ["a", "b", "c"]
    assert torch.equal(policy.predict(x, time, condition), out), (
        "b was used longest ago, made room, and comes back"
    )
    assert asked == ["a", "b", "c", "b"]


def test_a_latent_that_is_not_finite_spoils_its_own_image_only(policy_of: Any) -> None:
    policy = policy_of("sd3")
    latents = policy.start(torch.arange(3), Rng(0))
    good = policy.images(latents)
    latents[1, 7] = float("inf")
    images = policy.images(latents)
    assert np.isnan(images[1]).all()
    np.testing.assert_allclose(images[0], good[0], atol=1e-6)
    np.testing.assert_allclose(images[2], good[2], atol=1e-6)


def redness(table: Table) -> Tensor:
    return torch.tensor(
        [float(image[..., 0].mean() - image[..., 1].mean()) for image in table.fields["image"]]
    )


@pytest.mark.parametrize(("family", "lora"), [("sd3", LORA), ("flux", None)])
def test_one_update_of_flow_grpo(family: str, lora: Any, policy_of: Any) -> None:
    policy = policy_of(family, lora=lora, guidance=1.0)
    rows = policy.sample(TASKS, FlowPlan(6, 4, noise=0.7), Rng(3))
    table = flow_grpo(("red",)).run(rows.with_columns({"red": ("b", redness(rows))}))
    grouped = table["advantage"].reshape(2, 6, 4)[..., 0]
    torch.testing.assert_close(grouped.sum(1), torch.zeros(2), rtol=0, atol=1e-5)
    config = TrainConfig(lr=2e-3, warmup=1)
    objective = PolicyGradient(term=part(clip_term, low=1e-4, high=1e-4))
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    fixed = {n: p.clone() for n, p in policy.model.named_parameters() if n not in before}
    first = backward(policy, objective, objective.prepare(table, policy.reads), 8)
    assert first["logp_shift"] < 1e-5
    assert first["rows_active"] == 12
    log = update(policy, objective, torch.optim.AdamW(policy.parameters(), lr=1e-3), table, config, Rng(0), 0)
    assert log["grad_norm"] > 0
    after = policy.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) > len(before) // 3
    assert all(torch.equal(p, fixed[n]) for n, p in policy.model.named_parameters() if n in fixed)
    gain = ((policy.score(table) - table["logp"]) * table["advantage"]).sum()
    assert gain > 1e-5, "good images have become more likely than bad ones"


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy_of(folder_of: Any, tmp_path: Path) -> Callable[[str], Path]:
    def get(family: str) -> Path:
        return Path(shutil.copytree(folder_of(family), tmp_path / family))

    return get


def rename(folder: Path, part: str, value: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index[part] = value
    (folder / "model_index.json").write_text(json.dumps(index))


INDEX_FAULTS = [
    ("_class_name", "StableDiffusionPipeline",
     r"holds a StableDiffusionPipeline; supported are StableDiffusion3Pipeline and FluxPipeline"),
    ("_class_name", ["my_code", "MyPipeline"], r"supported are StableDiffusion3Pipeline and FluxPipeline"),
    ("transformer", ["diffusers", "SanaTransformer2DModel"],
     r"transformer is a SanaTransformer2DModel; .* with SD3Transformer2DModel only"),
    ("scheduler", ["diffusers", "DPMSolverMultistepScheduler"],
     r"scheduler is a DPMSolver.*; save the pipeline with FlowMatchEulerDiscreteScheduler.from_config"),
    ("vae", [None, None], r"model_index.json names no vae, which a StableDiffusion3Pipeline needs"),
    ("text_encoder_2", ["my_code", "CLIPTextModelWithProjection"], r"code of its own \(my_code\), which is never run"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "value", "message"), INDEX_FAULTS)
def test_pipelines_that_are_not_supported_are_named(
    part: str, value: Any, message: str, copy_of: Any
) -> None:
    folder = copy_of("sd3")
    rename(folder, part, value)
    with pytest.raises(ConfigError, match=message):
        DiffusersFlowPolicy.from_pretrained(folder)


def test_folders_that_are_not_complete_are_named(copy_of: Any, tmp_path: Path) -> None:
    load = DiffusersFlowPolicy.from_pretrained
    with pytest.raises(ConfigError, match=r"no folder .*nowhere; .* must be downloaded first"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model_index.json is missing \(found: config.json\)"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "model_index.json").write_text("{oops")
    with pytest.raises(ConfigError, match=r"model_index.json is not JSON"):
        load(tmp_path / "empty")
    folder = copy_of("flux")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ConfigError, match="cannot load the FluxPipeline"):
        load(folder)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        ConfigError, match=r"transformer needs weights as safetensors, found only pickled ones \(diff"
    ):
        load(folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(ConfigError, match="transformer needs weights as safetensors, found none"):
        load(folder)
    shutil.rmtree(folder / "tokenizer_2")
    weights.write_bytes(kept)
    with pytest.raises(ConfigError, match=r"the component tokenizer_2 is missing"):
        load(folder)
    folder = copy_of("sd3")
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(ConfigError, match=r"text_encoder_3 is missing .* or write \[null, null\]"):
        load(folder)


def test_options_that_do_not_fit_are_named(policy_of: Any) -> None:
    with pytest.raises(ConfigError, match=r"size 18 x 24 .* multiples of 4 pixels .* nearest is 16 x 24"):
        policy_of("sd3", size=(18, 24))
    with pytest.raises(ConfigError, match=r"size 16 x 0 "):
        policy_of("flux", size=(16, 0))
    with pytest.raises(ConfigError, match="positions for sides of up to 64 pixels"):
        policy_of("sd3", size=(16, 128))
    with pytest.raises(ConfigError, match="max_sequence_length must lie between 1 and 512, got 600"):
        policy_of("sd3", max_sequence_length=600)
    with pytest.raises(ConfigError, match=r"LoRA targets .*nothing"):
        policy_of("sd3", lora=LoraOptions(targets=("nothing",)))
    with pytest.raises(ConfigError, match="float16, whose gradients underflow; take bfloat16"):
        policy_of("sd3", dtype="float16")
    with pytest.raises(ConfigError, match="stochastic_sampling is not supported"):
        policy_of("sd3", {"stochastic_sampling": True})
    messages: Any = [{"role": "user", "content": "a cat"}]
    with pytest.raises(DataError, match="a prompt of an image must be text, got list"):
        policy_of("sd3").sample([Task(0, messages)], ODE, Rng(0))
    assert policy_of("sd3", size=None).model.shape == (16, 16, 3)
    assert policy_of("sd3").settings["guidance"] == 7.0
    assert policy_of("flux").settings["embedded_guidance"] == 3.5


def test_schedules_compare_by_value(policy_of: Any) -> None:
    schedule = policy_of("flux").schedule
    assert schedule == policy_of("flux").schedule
    assert isinstance(schedule, PipelineSchedule)
    assert "mu=0.68" in repr(schedule)


def test_diffusers_is_imported_by_nobody_else(monkeypatch: Any, folder_of: Any) -> None:
    code = (
        "import sys, concordant.policies.flow, concordant.policies.flow.diffusers, concordant.worlds.user\n"
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    folder = folder_of("flux")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r'pip install "concordant\[flow\]"'):
        DiffusersFlowPolicy.from_pretrained(folder)
