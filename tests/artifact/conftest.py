"""A tiny random StableDiffusionPipeline and its fake-quantized UNet."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.models.unet import LayerRole, unet_layers
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit

from .whole import pack

SAMPLERS = (("pndm", 4), ("dpm", 3))


def build_tokenizer() -> CLIPTokenizer:
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=60, min_frequency=1, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(["a", "red", "cross"], trainer)
    import json

    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=8)


def build_unet(width: int = 32) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


def quantized(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy in which every layer but the time layers is fake-quantized, all of b = 1..8 in turn."""
    made = copy.deepcopy(unet)
    kept = [layer for layer in unet_layers(made).values() if layer.role is not LayerRole.TIME]
    bits = {layer.name: 8 if layer.role is LayerRole.FIRST_LAST else 1 + index % 8 for index, layer in enumerate(kept)}
    fake_quantize_model(made, bits, ScaleInit.ALTERNATING)
    return made.eval()


def build_pipeline(width: int = 32) -> StableDiffusionPipeline:
    tokenizer = build_tokenizer()
    unet = build_unet(width)
    torch.manual_seed(1)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    vae = AutoencoderKL(
        sample_size=8,
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
    )
    made = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def pipeline() -> StableDiffusionPipeline:
    return build_pipeline()


@pytest.fixture(scope="session")
def student(pipeline: StableDiffusionPipeline) -> UNet2DConditionModel:
    return quantized(pipeline.unet)


@pytest.fixture(scope="session")
def any_step_folder(
    pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same with the time layers kept at 8 bits: for any sampler."""
    path = tmp_path_factory.mktemp("packed") / "any_step"
    write_pipeline(pipeline, student, path, None)
    return path


@pytest.fixture(scope="session")
def folder(
    pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A packed pipeline folder; tests that damage it copy it first."""
    path = tmp_path_factory.mktemp("packed") / "pipeline"
    write_pipeline(pipeline, student, path, SAMPLERS, source_sha256="0" * 64, provenance={"made_by": "a test"})
    return path


@pytest.fixture(scope="session")
def dense_folder(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense pipeline, float32."""
    path = tmp_path_factory.mktemp("dense") / "pipeline"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def whole(dense_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UNet, text encoder and VAE packed, layers at 1 to 8 bits in turn."""
    path = tmp_path_factory.mktemp("whole") / "pipeline"
    pack(dense_folder, path, ("unet", "text_encoder", "vae"))
    return path
