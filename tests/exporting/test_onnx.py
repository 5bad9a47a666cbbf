"""`export --to onnx`: ONNX Runtime draws the packed model's picture, of UNets and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import bitsfusion
from bitsfusion.errors import InputError
from bitsfusion.exporting.onnx_calls import CallGraph, recorded_calls
from bitsfusion.exporting.onnx_runtime import use_graphs
from bitsfusion.exporting.original import packed_denoiser
from bitsfusion.exporting.weights import open_weights
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.packing import init_pipeline

from ..tiny.kinds import KINDS
from ..tiny.pipeline import build_one_block_pipeline
from ..tiny.transformers import build_transformer_pipeline

PROMPTS, SEEDS, STEPS = ("a red circle", "two blue squares"), (1, 2), 3


def draw(pipeline: Any, guidance: float = 3.0) -> np.ndarray:
    """Units of 255."""
    return generate_images(pipeline, PROMPTS, SEEDS, STEPS, guidance, "own").astype(np.float64)


def check_pictures(packed: Path, graphs: Path, most: float) -> None:
    """Pictures of three batches' sizes are torch's, within `most` of 255."""
    pipeline: Any = load_pipeline(str(packed))
    wanted = draw(pipeline), draw(pipeline, 1.0)
    use_graphs(pipeline, graphs)
    assert np.ptp(wanted[0]) > 50
    for guidance, expected in zip((3.0, 1.0), wanted, strict=True):
        assert np.abs(draw(pipeline, guidance) - expected).max() <= most


def check_weights(packed: Path, graphs: Path) -> None:
    """Integers times scales are the packed weights, bit for bit, every layer of the denoiser."""
    folder = packed_denoiser(packed)
    graph = onnx.load(graphs / f"{folder.path.name}.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    with open_weights(folder) as weights:
        layers = {layer.name: layer.weight.numpy() for layer in weights.layers()}
    assert nodes.keys() == {f"model.{name}.weight" for name in layers}
    for name, weight in layers.items():
        node = nodes[f"model.{name}.weight"]
        levels, scale = (onnx.numpy_helper.to_array(stored[part]).astype(np.float32) for part in node.input)
        assert np.array_equal(levels * scale.reshape(-1, *(1 for _ in levels.shape[1:])), weight), name


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind",
    [
        "one block",
        pytest.param("sd1", marks=SLOW),
        pytest.param("sdxl", marks=SLOW),
        pytest.param("SD3Transformer2DModel", marks=SLOW),
        pytest.param("FluxTransformer2DModel", marks=SLOW),
        pytest.param("Flux2Transformer2DModel", marks=SLOW),
        pytest.param("AuraFlowTransformer2DModel", marks=SLOW),
    ],
)
def test_the_same_picture(kind: str, tmp_path: Path) -> None:
    builders = {"one block": build_one_block_pipeline, **KINDS}
    built = builders[kind]() if kind in builders else build_transformer_pipeline(kind)
    built.save_pretrained(tmp_path / "dense")
    init_pipeline(str(tmp_path / "dense"), tmp_path / "packed", recipe="uniform:3")
    made = bitsfusion.export(tmp_path / "packed", "onnx", tmp_path / "graphs")
    assert {share.type for share in made.shares} >= {"int4", "float32"}
    assert all(share.exact for share in made.shares)
    check_weights(tmp_path / "packed", tmp_path / "graphs")
    check_pictures(tmp_path / "packed", tmp_path / "graphs", 1)


@pytest.mark.parametrize("kind", ["sdxl", "SD3Transformer2DModel", "FluxTransformer2DModel"])
def test_the_calls_of_a_pipeline(kind: str) -> None:
    """Every network is met, its batch is free and nothing else, and the call gives again what it gave."""
    pipeline = KINDS[kind]() if kind in KINDS else build_transformer_pipeline(kind)
    calls = recorded_calls(pipeline, "own", 2)
    encoders = {name for name, part in pipeline.components.items() if name.startswith("text_encoder") and part}
    denoiser = "unet" if kind in KINDS else "transformer"
    assert calls.keys() == encoders | {denoiser, "vae_decoder"}
    for name, call in calls.items():
        batch = {size for key, places in call.free.items() for size in (call.inputs[key].shape[i] for i in places)}
        assert batch in ({2}, {4}), name
        graph = CallGraph(getattr(pipeline, call.component), call)
        with torch.no_grad():
            outputs = graph(*call.inputs.values())
        assert len(outputs) == len(graph.output_names()) and all(len(output) in batch for output in outputs)
    ids = {name for name in calls[denoiser].inputs if name.endswith("_ids") and name != "time_ids"}
    assert all(not calls[denoiser].free[name] for name in ids)


@pytest.mark.slow
def test_the_embedded_model(packed: Path, tmp_path: Path) -> None:
    """At 1.99 bits, its features of every step stored, text encoder and VAE packed too."""
    bitsfusion.export(packed, "onnx", tmp_path / "graphs")
    check_weights(packed, tmp_path / "graphs")
    check_pictures(packed, tmp_path / "graphs", 1)


@pytest.mark.slow
def test_the_flow_model(tmp_path: Path) -> None:
    """A trained transformer, which keeps its modulation."""
    init_pipeline("embedded:flow", tmp_path / "packed", recipe="uniform:2")
    bitsfusion.export(tmp_path / "packed", "onnx", tmp_path / "graphs")
    check_weights(tmp_path / "packed", tmp_path / "graphs")
    check_pictures(tmp_path / "packed", tmp_path / "graphs", 1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PixArtTransformer2DModel", "attention masks"),
        ("QwenImageTransformer2DModel", "complex numbers"),
        ("ZImageTransformer2DModel", "lists of tensors"),
    ],
)
def test_what_is_missing_is_named(name: str, reason: str, tmp_path: Path) -> None:
    build_transformer_pipeline(name).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=f"Pipeline .*, wanted one of .*: .*{reason}"):
        bitsfusion.export(tmp_path / "model", "onnx", tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def test_refusals(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wanted one of StableDiffusionPipeline, StableDiffusionXL"):
        bitsfusion.export(packed / "unet", "onnx", tmp_path / "graphs")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"got no text_encoder.onnx, wanted a folder that export --to onnx wrote"):
        use_graphs(load_pipeline(str(packed)), tmp_path)
