"""What the writer refuses, leaves alone and writes byte for byte."""

from __future__ import annotations

import copy
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import zstandard
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.writer import write_model, write_pipeline
from bitsfusion.diffusion.samplers import Coverage, cover
from bitsfusion.diffusion.time_features import cache_time_features, time_feature_rows, time_layers
from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.nn.fake_quantized import FakeQuantizedLinear
from bitsfusion.nn.replace import replace_module

from .conftest import SAMPLERS

LAYER = "mid_block.attentions.0.proj_in"
COVERAGE = Coverage((981, 1))


def test_layers_at_8_bits_serve_any_step(
    pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, tmp_path: Path
) -> None:
    config = write_pipeline(pipeline, student, tmp_path / "out", None)
    assert config.time_features.kind == "layers_8bit" and config.removed == {} and config.feature_values == 0
    assert all(config.bits[name] == 8 for name in time_layers(student))
    verify_folder(tmp_path / "out")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    loaded.scheduler = DDIMScheduler.from_config(loaded.scheduler.config)
    generator = torch.Generator().manual_seed(0)
    sample, context = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 8, 32, generator=generator)
    with torch.no_grad():
        for step in (3, 998):
            expected = student(sample, step, context).sample
            assert (loaded.unet(sample, step, context).sample - expected).norm() < 0.01 * expected.norm()


def test_the_unet_is_not_changed(student: UNet2DConditionModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    write_model(student, tmp_path / "out", COVERAGE)
    after = student.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_same_bytes_every_time(student: UNet2DConditionModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(student, tmp_path / name, COVERAGE)
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_unet_cached_before_writing(
    pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, folder: Path, tmp_path: Path
) -> None:
    cached = copy.deepcopy(student)
    cache_time_features(cached, cover(SAMPLERS, pipeline.scheduler.config))
    write_pipeline(pipeline, cached, tmp_path / "out", SAMPLERS)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (folder / file).read_bytes()
    with pytest.raises(InputError, match="wanted its time step 981"):
        write_model(cached, tmp_path / "other", COVERAGE)


def test_rows_and_golden_layer(student: UNet2DConditionModel, tmp_path: Path) -> None:
    """The first layer's bytes by hand, from the specification."""
    write_model(student, tmp_path / "out", COVERAGE)
    tensors = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(tensors["time_proj.rows"], time_feature_rows(student, COVERAGE.steps))
    layer = student.conv_out  # 8 bits: low bytes, then the ninth-bit plane
    payload = tensors["conv_out.packed"].numpy().tobytes()
    end = 4 + int.from_bytes(payload[:4], "little")
    scales = layer.scale.detach().numpy().astype("<f4").tobytes()
    assert zstandard.decompress(payload[4:end]) == b"".join(scales[byte::4] for byte in range(4))
    symbols = (layer.quantized_weight() / layer.scale.view(-1, 1, 1, 1)).round().int().flatten() + 128
    assert int(symbols.max()) == 256 or int(symbols.min()) == 0  # the largest weight sits on an outer level
    low = bytes(int(symbol) & 255 for symbol in symbols)
    plane = bytearray(-(-len(low) // 8))
    for index, symbol in enumerate(symbols):
        plane[index // 8] |= (int(symbol) >> 8) << (index % 8)
    assert zstandard.decompress(payload[end:]) == low + bytes(plane)


def test_dense_layer_is_refused(student: UNet2DConditionModel, tmp_path: Path) -> None:
    broken = copy.deepcopy(student)
    replace_module(broken, LAYER, torch.nn.Conv2d(64, 64, 1))
    with pytest.raises(InputError, match=f"^{LAYER}: got a dense Conv2d"):
        write_model(broken, tmp_path / "out", COVERAGE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["weight", "scale", "bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(student: UNet2DConditionModel, tmp_path: Path, part: str, value: float) -> None:
    broken = copy.deepcopy(student)
    with torch.no_grad():
        getattr(broken.get_submodule(LAYER), part).view(-1)[0] = value
    with pytest.raises(InputError, match=f"^{LAYER}.*NaN or infinite"):
        write_model(broken, tmp_path / "out", COVERAGE)


def test_a_folder_with_other_things_is_left_alone(student: UNet2DConditionModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="got a folder with other files"):
        write_model(student, tmp_path, COVERAGE)
    student.save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match="got a folder with other files"):
        write_model(student, tmp_path / "dense", COVERAGE)
    with pytest.raises(InputError, match="got a file"):
        write_model(student, tmp_path / "thesis.txt", COVERAGE)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("limit", [1_000, 40_000])
def test_a_full_disk_leaves_the_old_folder(student: UNet2DConditionModel, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stops the write half way, as a full disk does."""
    write_model(student, tmp_path / "out", COVERAGE)
    before = sha256_folder(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(BitsFusionError, match="could not be written"):
            write_model(student, tmp_path / "out", Coverage((1,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sha256_folder(tmp_path / "out") == before


def test_an_older_packed_folder_is_replaced(student: UNet2DConditionModel, tmp_path: Path) -> None:
    write_model(student, tmp_path / "out", COVERAGE)
    write_model(student, tmp_path / "out", Coverage((1,)), source_sha256="a" * 64, provenance={"recipe": "b"})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["time_features"]["steps"] == [1]
    assert config["quantization_config"]["source_sha256"] == "a" * 64
    assert config["quantization_config"]["provenance"] == {"recipe": "b"}
    assert "_name_or_path" not in config


def test_trained_time_layers_keep_their_own_quantizer(student: UNet2DConditionModel, tmp_path: Path) -> None:
    trained = copy.deepcopy(student)
    name = time_layers(trained)[0]
    layer = trained.get_submodule(name)
    scale = torch.full((layer.out_features,), 0.25)
    replace_module(trained, name, FakeQuantizedLinear.from_layer(layer, 4, scale))
    assert write_model(trained, tmp_path / "out", None).bits[name] == 4
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.get_submodule(name).weight, trained.get_submodule(name).quantized_weight())


def test_packed_model_is_packed_again(folder: Path, tmp_path: Path) -> None:
    loaded = UNet2DConditionModel.from_pretrained(folder / "unet")
    coverage = loaded.time_proj.coverage
    write_model(loaded, tmp_path / "out", coverage)
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (folder / "unet" / name).read_bytes()
    assert inspect_folder(tmp_path / "out").weights == inspect_folder(folder).weights


def test_pipeline_without_a_unet(student: UNet2DConditionModel, tmp_path: Path) -> None:
    class Other:
        components: dict[str, Any] = {}  # noqa: RUF012

    with pytest.raises(InputError, match="without a unet"):
        write_pipeline(Other(), student, tmp_path / "out")


def test_header_is_plain_safetensors(folder: Path) -> None:
    data = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    kinds = {(name.rsplit(".", 1)[-1], entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}
    assert kinds == {("packed", "U8"), ("bias", "F32"), ("weight", "F32"), ("rows", "F16")}
    assert safetensors.torch.load(data).keys() == {name for name in header if name != "__metadata__"}
