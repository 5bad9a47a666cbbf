"""A tiny random StableDiffusionPipeline and its fake-quantized UNet."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit

from ..tiny.pipeline import build_pipeline
from ..tiny.unet import build_unet
from ..tiny.vae import build_vae
from .whole import pack

SAMPLERS = (("pndm", 4), ("dpm", 3))


def mixed_bits(unet: UNet2DConditionModel) -> dict[str, int]:
    """All of b = 1..8 in turn for every layer but the time layers; first and last at 8."""
    kept = [layer for layer in model_layers(unet).values() if layer.role is not LayerRole.TIME]
    return {layer.name: 8 if layer.role is LayerRole.FIRST_LAST else 1 + index % 8 for index, layer in enumerate(kept)}


def quantized(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy, fake-quantized at `mixed_bits`."""
    made = copy.deepcopy(unet)
    fake_quantize_model(made, mixed_bits(made), ScaleInit.ALTERNATING)
    return made.eval()


@pytest.fixture(scope="session")
def pipeline() -> StableDiffusionPipeline:
    return build_pipeline(
        build_unet(block_out_channels=(32, 64), cross_attention_dim=32), build_vae(scaling_factor=1.0)
    )


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
