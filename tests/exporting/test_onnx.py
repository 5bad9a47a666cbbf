"""`export --to onnx`: ONNX Runtime draws the packed model's picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

import bitsfusion
from bitsfusion.errors import InputError


@pytest.fixture(scope="module")
def graphs(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "graphs"
    made = bitsfusion.export(packed, "onnx", out)
    assert {share.type for share in made.shares} >= {"int4", "int8", "float32"}
    assert all(share.exact for share in made.shares)
    assert (out / "unet.onnx.data").stat().st_size > 2e6
    return out


def runner(path: Path) -> Callable[..., tuple[Tensor]]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [found.name for found in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor]:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return (torch.from_numpy(session.run(None, values)[0]),)

    return run


def draw(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    images: np.ndarray = pipeline("a red circle", num_inference_steps=10, generator=noise, output_type="np").images
    return images * 255


@pytest.mark.slow
def test_the_same_picture(packed: Path, graphs: Path) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(packed)
    wanted = draw(pipeline)
    encode, predict, decode = (runner(graphs / f"{name}.onnx") for name in ("text_encoder", "unet", "vae_decoder"))
    pipeline.text_encoder.forward = lambda ids, **_: encode(ids)
    pipeline.unet.forward = lambda sample, step, encoder_hidden_states, **_: predict(
        sample, step.float().expand(len(sample)), encoder_hidden_states
    )
    pipeline.vae.decode = lambda latents, **_: decode(latents)
    assert np.ptp(wanted) > 50
    assert np.abs(draw(pipeline) - wanted).max() < 0.1


@pytest.mark.slow
def test_weights_are_integers_and_exact(packed: Path, graphs: Path) -> None:
    graph = onnx.load(graphs / "unet.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    unet: Any = UNet2DConditionModel.from_pretrained(packed / "unet")
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    layers = [name for name, module in unet.named_modules() if hasattr(module, "packed")]
    assert {node.output[0] for node in nodes} == {f"model.{name}.weight" for name in layers}
    for node in nodes:
        levels, scale = (onnx.numpy_helper.to_array(stored[name]).astype(np.float32) for name in node.input)
        weight = unet.get_submodule(node.output[0].removeprefix("model.").removesuffix(".weight")).weight
        assert np.array_equal(levels * scale.reshape(-1, *(1 for _ in levels.shape[1:])), weight.numpy())


def test_refusals(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wanted a StableDiffusionPipeline"):
        bitsfusion.export(packed / "unet", "onnx", tmp_path / "graphs")
    assert not list(tmp_path.iterdir())
