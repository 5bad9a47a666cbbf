"""Sizes before a download: what `plan` says of config.json alone is what `init` then writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

import bitsfusion
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.artifact.inspect import inspect_folder, inspect_pipeline
from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.errors import InputError
from bitsfusion.numerics import ScaleInit
from bitsfusion.runs.components import WHOLE
from bitsfusion.runs.packing import init_pipeline
from bitsfusion.runs.plan import PackedPlan, plan

from ..tiny.transformers import CONFIGS, build_transformer
from ..tiny.unet import build_unet

TINY_BOUND = 0.06
"""The bound of models whose layers have hundreds of weights: zstd's tables for each are most of what differs."""


def configs_only(source: Path, target: Path) -> Path:
    """A copy of a folder without its weights."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def check(planned: PackedPlan, written: Path, bound: float) -> None:
    inspection = inspect_folder(written)
    size = sum(file.stat().st_size for file in written.iterdir())
    assert planned.bytes == pytest.approx(size, rel=bound)
    assert size <= planned.bytes_at_most
    assert planned.bytes_in_memory == inspection.bytes_in_memory
    assert planned.average_bits == pytest.approx(inspection.average_bits, abs=1e-9)
    assert {layer.name: layer.bits for layer in planned.layers if layer.bits} == {
        layer.name: layer.bits for layer in inspection.layers
    }
    assert planned.file.other == inspection.bytes_on_disk.other
    assert planned.file.header == pytest.approx(inspection.bytes_on_disk.header, abs=200)


@pytest.mark.parametrize("name", ["UNet2DConditionModel", *CONFIGS])
def test_a_tiny_model_takes_what_was_planned(name, tmp_path):
    model = build_unet() if name.startswith("UNet") else build_transformer(name)
    model.save_pretrained(tmp_path / "dense")
    init_pipeline(
        str(tmp_path / "dense"), tmp_path / "out", recipe="uniform:2", samplers=None, method=ScaleInit.COMPACT
    )
    planned = plan(str(configs_only(tmp_path / "dense", tmp_path / "configs")), recipe="uniform:2", samplers=None)
    assert planned.denoiser.packed is not None
    check(planned.denoiser.packed, tmp_path / "out", TINY_BOUND)
    assert planned.denoiser.weights == sum(tensor.numel() for tensor in model.parameters())
    assert planned.bytes_packed == planned.denoiser.packed.bytes < planned.bytes_dense == 2 * planned.denoiser.weights


def test_a_whole_trained_pipeline_takes_what_was_planned(tmp_path):
    init_pipeline("embedded", tmp_path / "out", recipe="uniform:2", others=WHOLE, method=ScaleInit.COMPACT)
    planned = bitsfusion.plan("embedded", recipe="uniform:2")
    parts = {part.name: part for part in inspect_pipeline(tmp_path / "out")}
    for component in planned.components:
        assert component.packed is not None
        assert component.packed.bytes == pytest.approx(parts[component.name].bytes_on_disk, rel=0.03)
        assert parts[component.name].bytes_on_disk <= component.packed.bytes_at_most
        files = list((PIPELINE_FOLDER / component.name).glob("*.safetensors"))
        assert component.bytes_dense == sum(file.stat().st_size for file in files)
    total = sum(parts[component.name].bytes_on_disk for component in planned.components)
    assert planned.bytes_whole == pytest.approx(total, rel=0.03)
    time = planned.denoiser.packed.time
    assert time is not None and time.saved > 0
    removed = [layer for layer in planned.denoiser.packed.layers if layer.bits is None]
    assert {layer.role for layer in removed} == {LayerRole.TIME} and len(removed) == time.layers
    features = parts["unet"].packed.bytes_on_disk.time_features
    assert time.bytes == pytest.approx(features, rel=0.1)


def test_average_bits_are_spread_as_init_does(tmp_path):
    """The layers' errors of Gaussian weights differ by chance alone, so that the averages agree, not every layer."""
    planned = plan("embedded", bits=2.5).denoiser.packed
    assert planned is not None and planned.average_bits == pytest.approx(2.5, abs=0.01)
    with pytest.raises(InputError, match=r"got 0\.5 bits on average"):
        plan("embedded", bits=0.5)


def test_a_hub_id_needs_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--someone--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c0ffee")
    snapshot = configs_only(PIPELINE_FOLDER, home / "snapshots" / "c0ffee")
    index = {"metadata": {"total_size": 123456}, "weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (snapshot / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    planned, local = plan("someone/model"), plan("embedded")
    assert planned.denoiser.packed == local.denoiser.packed
    assert {part.name: part.bytes_dense for part in planned.components}["text_encoder"] == 123456
    assert json.loads(json.dumps(planned.to_dict()))["bytes_whole"] == local.bytes_whole
    with pytest.raises(InputError, match=r"^nobody/model: no such folder, and the hub did not give it"):
        plan("nobody/model")
