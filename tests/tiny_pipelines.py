"""Tiny randomly initialised pipelines on disk, in the form in which diffusers writes the large ones."""

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.utils import logging
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

logging.disable_progress_bar()

LETTERS = string.ascii_lowercase + string.digits
WIDTH = 32
"""Width of the embeddings of text that the transformers read."""
SIZE = (16, 24)
"""Height and width of the images in pixels; latents are half as large, patches half of that."""

DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_image_seq_len": 8, "max_image_seq_len": 64}
"""A shift that depends on the number of patches."""


def clip_tokenizer(length: int = 20) -> CLIPTokenizer:
    """A word is its letters."""
    signs = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={sign: i for i, sign in enumerate(signs)}, merges=[], model_max_length=length)


def clip(length: int = 20, *, projected: bool) -> Any:
    """A text encoder of width 16 for the tokenizer above."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS), max_position_embeddings=length, projection_dim=16, **sizes, **ids
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5_tokenizer() -> T5TokenizerFast:
    """A word is its letters, with a mark before the first one."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((sign, -3.0) for sign in LETTERS)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=64)


def t5() -> T5EncoderModel:
    """An encoder for the tokenizer above."""
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=4 + len(LETTERS), is_encoder_decoder=False, **sizes))


def vae(scale: float, shift: float) -> AutoencoderKL:
    """Halves height and width; four latent channels."""
    return AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=2, layers_per_block=1, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=scale, shift_factor=shift,
    )  # fmt: skip


def make_sd3(folder: Path, *, t5_too: bool = True, **scheduler: Any) -> Path:
    """Save a pipeline like Stable Diffusion 3; options go to the scheduler (by default shift 3)."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=16,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=vae(1.5, 0.06),
        text_encoder=clip(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5() if t5_too else None,
        tokenizer_3=t5_tokenizer() if t5_too else None,
    ).save_pretrained(folder)
    return folder


def make_flux(folder: Path, *, guided: bool = True, **scheduler: Any) -> Path:
    """Save a pipeline like Flux; `guided`: the transformer is told a guidance. Options go to the scheduler."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=16, guidance_embeds=guided, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{**DYNAMIC, **scheduler}),
        vae=vae(0.36, 0.12),
        text_encoder=clip(projected=False),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)
    return folder
