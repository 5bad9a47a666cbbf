"""The ways in: classes, dtypes, device maps, quantization configs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoModel,
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    PipelineQuantizationConfig,
    QuantoConfig,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from bitsfusion import BitsFusionConfig
from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PackedConv2d, PackedLinear

from .drawing import images, load

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return images(load(folder))


def packed_layers(model: torch.nn.Module) -> list[PackedLinear | PackedConv2d]:
    return [module for module in model.modules() if isinstance(module, (PackedLinear, PackedConv2d))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [UNet2DConditionModel, AutoModel], ids=["unet", "auto"])
def test_model(folder: Path, kind: type, dtype: torch.dtype) -> None:
    unet = kind.from_pretrained(str(folder), subfolder="unet", dtype=dtype)
    assert isinstance(unet, UNet2DConditionModel) and not unet.training
    assert unet.dtype == dtype and {layer.weight.dtype for layer in packed_layers(unet)} == {dtype}
    assert {layer.packed.dtype for layer in packed_layers(unet)} == {torch.uint8}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pipeline_classes(folder: Path, expected: np.ndarray, dtype: torch.dtype) -> None:
    auto = load(folder, AutoPipelineForText2Image, dtype=dtype)
    assert isinstance(auto, StableDiffusionPipeline)
    assert np.abs(images(auto) - expected).mean() <= (0 if dtype == torch.float32 else 0.05)


def test_image_to_image_takes_the_last_of_the_same_steps(folder: Path) -> None:
    pipeline = load(folder, StableDiffusionImg2ImgPipeline)
    start = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    made = [
        pipeline(
            "a red cross",
            start,
            strength=strength,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
        ).images
        for strength in (0.5, 1.0)
    ]
    assert made[0].shape == (1, 8, 8, 3) and not np.array_equal(*made)


def test_inpainting_with_a_text_to_image_unet(folder: Path) -> None:
    pipeline = load(folder, StableDiffusionInpaintPipeline)
    start, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    made = images(pipeline, image=start, mask_image=mask, strength=1.0)
    assert np.isfinite(made).all()


@pytest.mark.parametrize("way", ["from_pipe", "auto"])
def test_from_pipe_shares_the_unet(folder: Path, way: str) -> None:
    first = load(folder, dtype=torch.bfloat16)
    kind = StableDiffusionImg2ImgPipeline if way == "from_pipe" else AutoPipelineForImage2Image
    second = kind.from_pipe(first, dtype=torch.bfloat16)
    assert second.unet is first.unet and second.unet.dtype == torch.bfloat16


def test_from_pipe_casts_to_float32_as_diffusers_does(folder: Path) -> None:
    unet = StableDiffusionImg2ImgPipeline.from_pipe(load(folder, dtype=torch.bfloat16)).unet
    assert unet.dtype == torch.float32 and {layer.weight.dtype for layer in packed_layers(unet)} == {torch.float32}


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", "cpu", {"": "cpu"}], ids=str)
def test_device_map_of_a_model(folder: Path, expected: np.ndarray, device_map: str | dict[str, str]) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", device_map=device_map)
    assert {str(device) for device in unet.hf_device_map.values()} == {"cpu"}
    assert np.array_equal(images(load(folder, unet=unet)), expected)


@pytest.mark.parametrize("device_map", ["balanced", "cpu"])
def test_device_map_of_a_pipeline(folder: Path, expected: np.ndarray, device_map: str) -> None:
    assert np.array_equal(images(load(folder, device_map=device_map)), expected)


def test_device_map_with_a_disk_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got disk for mid_block, wanted devices or cpu"):
        UNet2DConditionModel.from_pretrained(
            folder / "unet", device_map={"": "cpu", "mid_block": "disk"}, offload_folder=tmp_path
        )


def test_device_map_counts_real_bytes(folder: Path) -> None:
    from accelerate.utils import compute_module_sizes

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    counted = compute_module_sizes(unet, dtype=unet.hf_quantizer.adjust_target_dtype(torch.float32))[""]
    assert counted == unet.get_memory_footprint()


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_low_cpu_mem_usage(folder: Path, low_cpu_mem_usage: bool) -> None:
    if low_cpu_mem_usage:
        UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=True)
    else:
        with pytest.raises(ValueError, match="`low_cpu_mem_usage` cannot be False or None when using quantization"):
            UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)


def test_a_config_that_names_the_method_on_a_packed_folder(folder: Path, expected: np.ndarray) -> None:
    config = PipelineQuantizationConfig(quant_mapping={"unet": BitsFusionConfig()})
    assert np.array_equal(images(load(folder, quantization_config=config)), expected)


def test_another_methods_config_on_a_packed_folder(folder: Path) -> None:
    with pytest.warns(UserWarning, match="The `quantization_config` from the model will be used"):
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", quantization_config=QuantoConfig(weights_dtype="int8")
        )
    assert packed_layers(unet)


def test_quantizing_a_dense_model_on_the_fly_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "dense")
    config = BitsFusionConfig()
    with pytest.raises(InputError, match=r"got bitsfusion for a dense model.*`bitsfusion init MODEL"):
        UNet2DConditionModel.from_pretrained(tmp_path / "dense" / "unet", quantization_config=config)
    with pytest.raises(InputError, match=r"got bitsfusion for a dense model.*`bitsfusion init MODEL"):
        load(
            tmp_path / "dense",
            quantization_config=PipelineQuantizationConfig(quant_mapping={"unet": BitsFusionConfig()}),
        )


def test_what_a_model_says_of_itself(folder: Path, pipeline: StableDiffusionPipeline) -> None:
    loaded = load(folder)
    unet = loaded.unet
    packed = sum(layer.packed.numel() for layer in packed_layers(unet))
    rows, steps = unet.time_proj.rows, unet.time_proj.steps
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    assert unet.get_memory_footprint() == packed + 4 * parameters + 4 * rows.numel() + 4 * steps.numel()
    assert (
        unet.num_parameters()
        == parameters
        == sum(p.numel() for p in pipeline.unet.parameters() if p.dim() == 1)
        - sum(pipeline.unet.get_submodule(name).out_features for name in unet.hf_quantizer.content.removed)
    )
    assert unet.dtype == torch.float32 and unet.device == torch.device("cpu")
    assert "PackedConv2d(4, 32, kernel_size=(3, 3)" in repr(unet) and "pndm 4 steps, dpm 3 steps" in repr(unet)
    assert "UNet2DConditionModel" in repr(loaded) and len(repr(loaded)) < 1000
