"""Transformers whose modulation sees the time step alone: stored as a basis, the layers gone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

import bitsfusion  # noqa: F401  registers the format
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.diffusion.time_features import BASIS, choose_features, time_layers
from bitsfusion.diffusion.time_features.layers import time_outputs
from bitsfusion.errors import InputError
from bitsfusion.exporting.dense import export_dense
from bitsfusion.nn.packed import packed_layer
from bitsfusion.runs import plan as planning
from bitsfusion.runs.packing import init_pipeline

from ..command import run as run_command
from ..tiny.generic import GENERIC, build_generic
from ..tiny.transformers import CONFIGS, build_transformer

TIMED = {
    "Flux2Transformer2DModel": "time_guidance_embed.timestep_embedder.linear_1",
    "QwenImageTransformer2DModel": "time_text_embed.timestep_embedder.linear_1",
    "AuraFlowTransformer2DModel": "time_step_proj.linear_1",
    "ZImageTransformer2DModel": "t_embedder.mlp.0",
    "PixArtTransformer2DModel": "adaln_single.emb.timestep_embedder.linear_1",
    "SanaTransformer2DModel": "time_embed.emb.timestep_embedder.linear_1",
    "LongCatImageTransformer2DModel": "time_embed.timestep_embedder.linear_1",
    "OvisImageTransformer2DModel": "timestep_embedder.linear_1",
}
"""The layer that is given the sinusoids of the step."""

LIKE_ANOTHER = {"SanaTransformer2DModel", "LongCatImageTransformer2DModel"}
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_ANOTHER else name for name in TIMED]

ENDS = {"PixArtTransformer2DModel", "SanaTransformer2DModel"}
"""Their modulation layer lies outside the blocks: 8 bits where it stays."""

SLOW = 106
"""Sinusoids from here on turn less than once over the whole schedule: with these alone features are smooth."""


def build_smooth(name: str) -> Any:
    """A tiny transformer whose modulation, as a trained model's, is a smooth function of the step."""
    model = build_generic(name) if name in GENERIC else build_transformer(name)
    with torch.no_grad():
        sinusoids = model.get_submodule(TIMED[name]).weight
        half = sinusoids.shape[1] // 2
        sinusoids.view(-1, 2, half)[:, :, :SLOW] = 0
        sinusoids.mul_(3)
        for layer in time_layers(model):
            if model.get_submodule(layer).bias is not None:
                model.get_submodule(layer).bias.zero_()
    return model


def run(model: Any, name: str, step: float) -> torch.Tensor:
    """One forward, as the class's pipeline calls it."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        if name == "Flux2Transformer2DModel":
            ids = torch.zeros(1, 6, 4)
            return model(noise(1, 6, 16), noise(1, 3, 24), torch.tensor([step / 1000]), ids, ids[:, :3]).sample
        if name == "QwenImageTransformer2DModel":
            shapes, mask = [[(1, 2, 3)]], torch.ones(1, 3, dtype=torch.long)
            return model(noise(1, 6, 16), noise(1, 3, 24), mask, torch.tensor([step / 1000]), shapes).sample
        if name == "AuraFlowTransformer2DModel":
            return model(noise(1, 4, 8, 8), noise(1, 3, 24), torch.tensor([step / 1000])).sample
        if name in ENDS:
            return model(noise(1, 4, 8, 8), noise(1, 3, 24), torch.tensor([step])).sample
        if name in GENERIC:
            ids = torch.arange(18.0).view(6, 3)
            return model(noise(1, 6, 16), noise(1, 3, 24), torch.tensor([step / 1000]), ids, ids[:3]).sample
        return model([noise(4, 1, 4, 4)], torch.tensor([step / 1000]), [noise(5, 24)]).sample[0]


@pytest.fixture(scope="module", params=CASES)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """The class, a model of it, and a folder with its packed forms: as a basis, and with its layers."""
    model = build_smooth(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder / "dense")
    init_pipeline(str(folder / "dense"), folder / "basis", recipe="uniform:7")
    init_pipeline(str(folder / "dense"), folder / "layers", recipe="uniform:7", samplers=None)
    return request.param, model, folder


def test_the_layers_are_gone_and_the_features_are_there(packed: tuple[str, Any, Path]) -> None:
    _, model, folder = packed
    verify_folder(folder / "basis")
    small, kept = inspect_folder(folder / "basis"), inspect_folder(folder / "layers")
    assert small.time_features["kind"] == "basis" and kept.time_features["kind"] == "none"
    removed = time_layers(model)
    assert small.removed_weights == sum(model.get_submodule(layer).weight.numel() for layer in removed) > 0
    assert {layer.name for layer in kept.layers} - {layer.name for layer in small.layers} == set(removed)
    assert small.bytes_in_memory < kept.bytes_in_memory
    loaded = type(model).from_pretrained(folder / "basis")
    assert not time_layers(loaded)
    again = folder / "again"
    loaded.save_pretrained(again)
    file = "diffusion_pytorch_model.safetensors"
    assert (again / file).read_bytes() == (folder / "basis" / file).read_bytes()


def test_inspect_says_what_is_gone_and_what_it_saved(
    packed: tuple[str, Any, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name, model, folder = packed
    bits = 8 if name in ENDS else 2
    file = load_file(folder / "basis" / "diffusion_pytorch_model.safetensors")
    features = sum(tensor.nbytes for name, tensor in file.items() if name.startswith("time_proj."))
    layers = [model.get_submodule(name) for name in time_layers(model)]
    stayed = sum(packed_layer(layer, bits).packed.nbytes for layer in layers)
    weights = sum(layer.weight.numel() for layer in layers)
    assert run_command("inspect", folder / "basis", "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == {
        "layers": len(layers),
        "weights": weights,
        "bits": bits,
        "layer_bytes": stayed,
        "feature_bytes": features,
        "saved": stayed - features,
    }
    assert run_command("inspect", folder / "basis") == 0
    assert (
        f"{len(layers)} layers, {weights:,} weights, packed at {bits} bits {stayed:,} bytes: {features:,} bytes of "
    ) in capsys.readouterr().out
    assert inspect_folder(folder / "layers").removed is None


@pytest.mark.parametrize("step", [1.0, 333.25, 1000.0])
def test_features_are_those_of_the_layers(packed: tuple[str, Any, Path], step: float) -> None:
    _, model, folder = packed
    loaded = type(model).from_pretrained(folder / "basis")
    features = loaded.time_proj(torch.tensor([step]))[0]
    wanted = torch.cat([part[0] for _, part in time_outputs(model, torch.tensor([step]))])
    middle = torch.cat([part[0] for _, part in time_outputs(model, torch.tensor([500.0]))])
    spread = max(float((wanted - middle).norm()), 0.05 * float(wanted.norm()))
    assert float((features.float() - wanted).norm()) <= 0.02 * spread


def test_draws_as_the_model_with_its_layers(packed: tuple[str, Any, Path]) -> None:
    """Of a twin with these weights everywhere else and the original's modulation."""
    name, model, folder = packed
    small = type(model).from_pretrained(folder / "basis")
    twin = copy.deepcopy(model)
    dense = type(model).from_pretrained(folder / "layers")
    removed = set(time_layers(model))
    with torch.no_grad():
        for layer, module in dense.named_modules():
            if hasattr(module, "packed") and layer not in removed:
                twin.get_submodule(layer).weight.copy_(module.weight)
    for step in (20.0, 517.5, 1000.0):
        got, wanted = run(small, name, step), run(twin, name, step)
        assert float((got - wanted).norm() / wanted.norm()) < 5e-3
        clone = copy.deepcopy(small)
        assert torch.equal(run(clone, name, step), got)
        assert clone.time_proj is not small.time_proj
    small.dequantize()
    assert torch.equal(run(small, name, 517.5), run(type(model).from_pretrained(folder / "basis"), name, 517.5))


def test_plan_counts_them_and_dense_export_says_why_not(
    packed: tuple[str, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, folder = packed
    monkeypatch.setattr(planning, "MODULATION_RANK", 1)
    planned = planning.plan(str(folder / "dense"), recipe="uniform:7").denoiser.packed
    assert planned is not None and planned.time is not None
    assert planned.time.layers == len(time_layers(model))
    monkeypatch.setattr(planning, "MODULATION_RANK", 64)
    large = planning.plan(str(folder / "dense"), recipe="uniform:7").denoiser.packed
    assert large is not None and large.time is None and "rank 64 would take more" in large.notes[-1]
    with pytest.raises(InputError, match="modulation was replaced by stored features"):
        export_dense(folder / "basis", tmp_path / "out")


def test_guidance_and_fast_features_keep_the_layers() -> None:
    config = FlowMatchEulerDiscreteScheduler().config
    rough = choose_features(build_transformer("Flux2Transformer2DModel"), BASIS, config)
    assert rough.features is None and rough.note is not None and "no basis within" in rough.note
    CONFIGS["Flux2Transformer2DModel"]["guidance_embeds"] = True
    try:
        guided = choose_features(build_transformer("Flux2Transformer2DModel"), BASIS, config)
    finally:
        CONFIGS["Flux2Transformer2DModel"]["guidance_embeds"] = False
    assert guided.features is None and guided.note is not None and "guidance_embeds" in guided.note


def test_sizes_that_enter_keep_the_layers() -> None:
    """The option is a default of the class for models of 1024 pixels: None in their config."""
    model = build_transformer("PixArtTransformer2DModel", use_additional_conditions=None, sample_size=128)
    choice = choose_features(model, BASIS, {})
    assert choice.features is None and "use_additional_conditions" in str(choice.note)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_where_pooled_text_enters_nothing_is_removed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_transformer(name)
    assert choose_features(model, BASIS, {}).features is None and not time_layers(model)
    model.save_pretrained(tmp_path / "dense")
    init_pipeline(str(tmp_path / "dense"), tmp_path / "packed", recipe="uniform:7")
    for command in (["inspect", tmp_path / "packed"], ["plan", tmp_path / "dense", "--recipe", "uniform:7"]):
        assert run_command(*command) == 0
        assert "modulation layers keep their bits: pooled text enters them, too" in capsys.readouterr().out
