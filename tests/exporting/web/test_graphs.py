"""Graphs without weights, filled by the page's scripts, compute what diffusers and transformers compute."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tests.exporting.web.conftest import Node
from torch import Tensor, nn
from transformers import CLIPTextModel

from bitsfusion.artifact.reader import open_folder
from bitsfusion.artifact.skeleton import empty_model
from bitsfusion.diffusion.time_features import time_feature_rows
from bitsfusion.exporting.web.graphs import Decoder, Featured, TextEncoder, TimedTransformer, TimedUNet, write_graph

from ...tiny.transformers import build_transformer

GOLDEN = Path(__file__).parents[2] / "artifact" / "golden"
FILL = """
import { writeFileSync } from "node:fs";
import { fillWeights, openModel } from "./graphs.js";
const model = openModel("model", given.entry, (path) => readFileSync(path));
writeFileSync(given.out, await fillWeights(model, given.entry, () => {}));
print(null);
"""


def traced(name: str, model: Any, meta: nn.Module) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """What is traced, its inputs, and what the model itself makes of them."""
    torch.manual_seed(0)
    if name == "v1/text_encoder":
        ids = torch.randint(0, model.config.vocab_size, (2, model.config.max_position_embeddings))
        return TextEncoder(meta), {"input_ids": ids}, model(ids)[0]
    if name == "v1/vae":
        latents = torch.randn(2, model.config.latent_channels, 4, 4)
        return Decoder(meta), {"latents": latents}, model.decode(latents).sample
    size, times = model.config.sample_size, torch.tensor([3.0, 3.0])
    sample, text = (
        torch.randn(2, model.config.in_channels, size, size),
        torch.randn(2, 5, model.config.cross_attention_dim),
    )
    wanted = model(sample, times, text).sample
    rest = {"encoder_hidden_states": text}
    if name == "v1/layers_8bit":
        return TimedUNet(meta), {"sample": sample, "timestep": times, **rest}, wanted
    features = model.time_proj(times)
    return Featured(TimedUNet(meta), features.shape[1]), {"sample": sample, "time_features": features, **rest}, wanted


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "dense"),
    [
        ("v1/text_encoder", False),
        ("v1/vae", False),
        ("v1/vae", True),
        ("v1/layers_8bit", False),
        ("v2/basis", False),
    ],
)
def test_filled_graphs_compute_the_same(node: Node, whole_page: Path, tmp_path: Path, name: str, dense: bool) -> None:
    folder = open_folder(GOLDEN / name)
    loaded: Any = {"v1/text_encoder": CLIPTextModel, "v1/vae": AutoencoderKL}.get(name, UNet2DConditionModel)
    model = loaded.from_pretrained(folder.path, dtype=torch.float32).eval()
    wrapped, inputs, wanted = traced(name, model, empty_model(folder.model_config))
    meta = {key: torch.empty_like(value, device="meta") for key, value in inputs.items()}
    layers = {} if dense else folder.config.layers
    layout = write_graph(wrapped, meta, layers, tmp_path / "graph.onnx")
    weights = [str(path) for path in folder.weight_files()]
    if dense:
        model.dequantize()
        tensors = {key: model.state_dict()[key].contiguous() for key, *_ in layout.tensors}
        save_file(tensors, tmp_path / "dense.safetensors")
        weights = [str(tmp_path / "dense.safetensors")]
        assert {kind for _, kind, *_ in layout.tensors} == {"float32"}
    else:
        assert {kind for _, kind, *_ in layout.tensors} == {"int4", "int8", "scale", "float32"}
    entry = {
        "config": None if dense else str(folder.path / "config.json"),
        "weights": weights,
        "bytes": layout.bytes,
        "tensors": layout.tensors,
    }
    check_graph(node, entry, tmp_path, inputs, wanted)


@torch.no_grad()
@pytest.mark.parametrize("stored", [False, True])
def test_graphs_of_a_transformer(node: Node, whole_page: Path, tmp_path: Path, stored: bool) -> None:
    """With its modulation, and with what that gives at a step."""
    model = build_transformer("AuraFlowTransformer2DModel").eval()
    meta, config, step = copy.deepcopy(model).to("meta"), model.config, torch.tensor([300.0, 300.0])
    sample = torch.randn(2, config.in_channels, config.sample_size, config.sample_size)
    states = torch.randn(2, 5, config.joint_attention_dim)
    wanted = model(sample, states, step / 1000).sample
    rows = time_feature_rows(model, step.tolist(), torch.float32)
    wrapped = Featured(TimedTransformer(meta), rows.shape[1]) if stored else TimedTransformer(meta)
    time = {"time_features": rows} if stored else {"timestep": step}
    inputs = {"sample": sample, **time, "encoder_hidden_states": states}
    empty = {key: torch.empty_like(value, device="meta") for key, value in inputs.items()}
    layout = write_graph(wrapped, empty, {}, tmp_path / "graph.onnx")
    names = {key for key, *_ in layout.tensors}
    assert any(name.startswith("time_step_") for name in names) == (not stored)
    weights = tmp_path / "dense.safetensors"
    save_file({name: model.state_dict()[name].contiguous() for name in names}, weights)
    entry = {"config": None, "weights": [str(weights)], "bytes": layout.bytes, "tensors": layout.tensors}
    check_graph(node, entry, tmp_path, inputs, wanted)


def check_graph(node: Node, entry: dict[str, Any], folder: Path, inputs: dict[str, Tensor], wanted: Tensor) -> None:
    """The folder's graph, filled by the page's scripts, gives what is wanted, for both samples and for one."""
    node(FILL, {"entry": entry, "out": str(folder / "weights.bin")})
    filled = (folder / "weights.bin").read_bytes()
    assert len(filled) == entry["bytes"]

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_external_initializers_from_files_in_memory(["weights"], [filled], [len(filled)])
    graph = (folder / "graph.onnx").read_bytes()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    (alone,) = session.run(None, {key: value[:1].numpy() for key, value in inputs.items()})
    np.testing.assert_allclose(alone, found[:1], rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert len(graph) < 300_000
