"""`.to`, `.half`, copies: what moves and what must not."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from bitsfusion.nn.packed import PackedConv2d, PackedLinear

from .drawing import images, inputs, load


def packed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    kinds = (PackedLinear, PackedConv2d)
    return {name: module.packed for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_casting_is_loading_in_that_dtype(folder: Path, dtype: torch.dtype) -> None:
    cast, loaded = load(folder), load(folder, dtype=dtype)
    before = packed(cast.unet)
    cast.to(dtype)
    assert cast.unet.dtype == dtype
    assert all(torch.equal(buffer, before[name]) for name, buffer in packed(cast.unet).items())
    assert np.array_equal(images(cast), images(loaded))
    weights = zip(cast.unet.modules(), loaded.unet.modules(), strict=True)
    for one, other in weights:
        if isinstance(one, (PackedLinear, PackedConv2d)):
            assert one.weight.dtype == dtype and torch.equal(one.weight, other.weight)


@pytest.mark.parametrize(
    ("name", "dtype"), [("half", torch.float16), ("float", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_half_and_float(folder: Path, name: str, dtype: torch.dtype) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    getattr(unet, name)()
    assert unet.dtype == dtype
    assert unet(*inputs(unet)).sample.dtype == dtype


def test_meta_computes_shapes(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").to("meta")
    assert unet(*inputs(unet, batch=2)).sample.shape == (2, 4, 4, 4)


def test_channels_last(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    expected = unet(*inputs(unet)).sample
    torch.testing.assert_close(unet.to(memory_format=torch.channels_last)(*inputs(unet)).sample, expected)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_copies_are_whole_and_apart(folder: Path, tmp_path: Path, way: object) -> None:
    from bitsfusion.artifact.verify import verify_folder

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    expected = unet(*inputs(unet)).sample
    made = way(unet)  # type: ignore[operator]
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    assert torch.equal(made(*inputs(made)).sample, expected)
    made.save_pretrained(tmp_path / "copy")
    verify_folder(tmp_path / "copy")


def test_a_copy_of_the_pipeline(folder: Path) -> None:
    loaded = load(folder)
    assert np.array_equal(images(copy.deepcopy(loaded)), images(loaded))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cuda(folder: Path, dtype: torch.dtype) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype)
    expected = unet(*inputs(unet)).sample
    unet.to("cuda")
    assert {tensor.device.type for tensor in (*unet.parameters(), *unet.buffers())} == {"cuda"}
    torch.testing.assert_close(unet(*inputs(unet)).sample.cpu(), expected, rtol=2e-2, atol=2e-2)
