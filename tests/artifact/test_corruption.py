"""Every way a folder can be broken ends in one line that names the layer."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.artifact.payload import encode_layer, tensor_bytes
from bitsfusion.artifact.reader import open_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.files import sha256_json

LAYER = "down_blocks.0.resnets.0.conv1"
PACKED = f"{LAYER}.packed"
CONFIG, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def change_config(folder: Path, change: Callable[[dict[str, Any]], None], seal: bool = True) -> None:
    """With `seal` as a liar would do it: the config's own hash fits again."""
    config = json.loads((folder / CONFIG).read_text())
    content = config["quantization_config"]
    change(content)
    if seal:
        apart = ("provenance", "config_sha256")
        hashed = {key: value for key, value in content.items() if key not in apart and not key.startswith("_")}
        content["config_sha256"] = sha256_json(hashed)
    (folder / CONFIG).write_text(json.dumps(config))


def with_scale(payload: torch.Tensor, scale: float) -> torch.Tensor:
    """The first of the scales changed, everything else as it was."""
    data = payload.numpy().tobytes()
    end = 4 + int.from_bytes(data[:4], "little")
    planes = bytearray(zstandard.decompress(data[4:end]))
    for index, byte in enumerate(struct.pack("<f", scale)):
        planes[index * len(planes) // 4] = byte
    frame = zstandard.compress(bytes(planes))
    return torch.frombuffer(bytearray(struct.pack("<I", len(frame)) + frame + data[end:]), dtype=torch.uint8)


def with_length(payload: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([torch.frombuffer(bytearray(struct.pack("<I", length)), dtype=torch.uint8), payload[4:]])


def test_whole_folder_passes(folder: Path) -> None:
    verify_folder(folder)
    verify_folder(folder / "unet")


def all_bytes(config: dict[str, Any], value: int) -> torch.Tensor:
    """A layer whose every radix byte is `value`, with scales of 0."""
    out, count = config["shape"][0], config["shape"][0] * config["shape"][1] * 9
    size = {1: -(-count // 5), 2: -(-count // 3), 3: -(-count // 2)}[config["bits"]]
    return torch.cat([torch.zeros(4 * out, dtype=torch.uint8), torch.full((size,), value, dtype=torch.uint8)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update({PACKED: t[PACKED][:-1].clone()}), "broken zstd frame"),
        (lambda t: t.update({PACKED: t[PACKED][:7].clone()}), "got 7 bytes, wanted more than"),
        (lambda t: t.update({PACKED: t[PACKED][:2].clone()}), "got 2 bytes, wanted more than"),
        (lambda t: t.update({PACKED: with_length(t[PACKED], 0xFFFFFFFF)}), "wanted more than .* 4294967295 bytes"),
        (lambda t: t.update({PACKED: with_length(t[PACKED], 20)}), "broken zstd frame"),
        (lambda t: t.update({PACKED: with_length(t[PACKED], 0)}), "zstd frame"),
        (lambda t: t.update({PACKED: torch.cat([t[PACKED], torch.zeros(1, dtype=torch.uint8)])}), "broken zstd frame"),
        (lambda t: t.update({PACKED: torch.cat([t[PACKED][:128], t[PACKED][128:].flip(0)])}), "broken zstd frame"),
        (lambda t: t.update({PACKED: encode_layer(torch.zeros(1000, dtype=torch.uint8), 32)}), "declares 872 bytes"),
        (lambda t: t.update({PACKED: with_scale(t[PACKED], float("nan"))}), "scale that is NaN"),
        (lambda t: t.update({PACKED: with_scale(t[PACKED], float("inf"))}), "scale that is NaN or infinite"),
        (lambda t: t.update({PACKED: with_scale(t[PACKED], 0.5)}), "SHA-256"),
        (lambda t: t.update({PACKED: t[PACKED].float()}), "got F32"),
        (lambda t: t.update({PACKED: t[PACKED][None].clone()}), "wanted one-dimensional"),
        (lambda t: t.pop(PACKED), "got no tensor"),
        (lambda t: t.update({f"{LAYER}.weight": torch.zeros(2)}), "that the model does not have"),
        (lambda t: t.update({f"{LAYER}.bias": torch.zeros(3)}), r"got F32 \[3\], wanted F32 \[32\]"),
        (lambda t: t.update({f"{LAYER}.bias": t[f"{LAYER}.bias"].half()}), "got F16"),
        (lambda t: t[f"{LAYER}.bias"].fill_(float("nan")), "NaN or infinite"),
    ],
)
def test_verify_names_the_layer(copied: Path, change: Callable[[dict[str, torch.Tensor]], None], says: str) -> None:
    change_tensors(copied, change)
    with pytest.raises(ArtifactError, match=f"^{LAYER}.*{says}") as caught:
        verify_folder(copied)
    assert "\n" not in str(caught.value)


def test_symbols_out_of_range(copied: Path) -> None:
    config = json.loads((copied / CONFIG).read_text())["quantization_config"]["layers"]
    name = next(n for n, entry in config.items() if entry["bits"] in (1, 2, 3) and entry["shape"][2:] == [3, 3])
    payload = encode_layer(all_bytes(config[name], 255), config[name]["shape"][0])
    change_tensors(copied, lambda t: t.update({f"{name}.packed": payload}))
    with pytest.raises(ArtifactError, match=f"^{name}: got a byte of 255"):
        verify_folder(copied)
    with pytest.raises(ArtifactError, match=f"^{name}: got a byte of 255"):
        UNet2DConditionModel.from_pretrained(copied / "unet")


def test_changed_bias(copied: Path) -> None:
    change_tensors(copied, lambda t: t[f"{LAYER}.bias"].add_(1))
    with pytest.raises(ArtifactError, match="beside the packed layers: got SHA-256"):
        verify_folder(copied)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["layers"][LAYER].update(bits=9), f"layers.{LAYER}.bits"),
        (lambda c: c["layers"][LAYER].update(shape=[32, 32, 3, 4]), f"^{LAYER}: got shape"),
        (lambda c: c["layers"][LAYER].update(shape=[1 << 40, 32, 3, 3]), f"layers.{LAYER}.shape.0"),
        (lambda c: c["layers"][LAYER].update(shape=[1 << 20, 1 << 20]), f"layers.{LAYER}: got 1099511627776 weights"),
        (lambda c: c["layers"][LAYER].update(sha256="x"), f"layers.{LAYER}.sha256"),
        (lambda c: c["layers"].update(ghost=c["layers"][LAYER]), "^ghost: got a layer that the model does not have"),
        (lambda c: c["layers"].pop(LAYER), f"^{LAYER}: got no bits"),
        (lambda c: c["removed"].pop("time_embedding.linear_1"), "^time_embedding.linear_1: got no bits"),
        (lambda c: c.update(new_key=1), "new_key: Extra inputs"),
        (lambda c: c.update(format_version=2), "got format_version 2, wanted 1"),
        (lambda c: c["time_features"].update(channels=3), "^time_proj: .*wanted"),
        (lambda c: c["time_features"].update(steps=[]), "time_features: .*belong to cached"),
        (lambda c: c["time_features"].update(kind="basis"), "time_features.kind"),
    ],
)
def test_broken_config(copied: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    change_config(copied, change)
    for load in (verify_folder, lambda path: UNet2DConditionModel.from_pretrained(path / "unet")):
        with pytest.raises(ArtifactError, match=says) as caught:
            load(copied)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: next(entry for entry in c["layers"].values() if entry["bits"] == 4).update(bits=5),
        lambda c: c["time_features"]["steps"].__setitem__(0, 980),
        lambda c: c["time_features"]["steps"].reverse(),
        lambda c: c["time_features"]["samplers"][0].update(steps=51),
        lambda c: c.update(source_sha256="1" * 64),
        lambda c: c.pop("source_sha256"),
        lambda c: c.pop("config_sha256"),
        lambda c: c.update(config_sha256=7),
    ],
)
def test_a_config_that_reads_well_but_is_another(copied: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """b = 4 and b = 5 take the same bytes; a step says which row is meant: only the config's own hash can tell."""
    change_config(copied, change, seal=False)
    for load in (verify_folder, lambda path: UNet2DConditionModel.from_pretrained(path / "unet")):
        with pytest.raises(ArtifactError, match="got content of SHA-256"):
            load(copied)


def test_loading_a_broken_layer_names_it(copied: Path) -> None:
    change_tensors(copied, lambda t: t.update({PACKED: t[PACKED][:-1].clone()}))
    with pytest.raises(ArtifactError, match=f"^{LAYER}: got a broken zstd frame"):
        UNet2DConditionModel.from_pretrained(copied / "unet")


def test_loading_without_a_tensor_names_it(copied: Path) -> None:
    change_tensors(copied, lambda t: t.pop(PACKED))
    with pytest.raises(ArtifactError, match=f"^{LAYER}: got no tensor"):
        UNet2DConditionModel.from_pretrained(copied / "unet")


def test_diffusers_own_notes_are_passed_over(copied: Path) -> None:
    change_config(copied, lambda c: c.update(_pre_quantization_dtype="float32"))
    verify_folder(copied)


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_cut_file(copied: Path, size: int) -> None:
    data = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(data[:size])
    with pytest.raises(ArtifactError, match="wanted a safetensors file"):
        verify_folder(copied)


def test_lying_header_length(copied: Path) -> None:
    data = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    with pytest.raises(ArtifactError, match="wanted a safetensors file"):
        verify_folder(copied)


def test_missing_weights(copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: got No such file"):
        verify_folder(copied)


def test_broken_json(copied: Path) -> None:
    (copied / CONFIG).write_text("{")
    with pytest.raises(ArtifactError, match="wanted a JSON object"):
        verify_folder(copied)


def test_not_a_packed_folder(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        verify_folder(tmp_path / "nowhere")
    shutil.rmtree(copied / "unet")
    with pytest.raises(InputError, match="got no packed model"):
        verify_folder(copied)


def decoded(folder: Path) -> dict[str, bytes]:
    """Everything that a file says, as bytes."""
    opened = open_folder(folder)
    with opened.tensors() as tensors:
        layers = {name: tensor_bytes(tensors.buffer(name)) for name in opened.config.layers}
        others = [name for name in tensors.names if not name.endswith(".packed")]
        return layers | {name: tensor_bytes(tensors.tensor(name)) for name in others}


@pytest.mark.parametrize("seed", range(2))
def test_flipped_bits_are_found_or_change_nothing(folder: Path, copied: Path, seed: int) -> None:
    whole, rng = (copied / WEIGHTS).read_bytes(), random.Random(seed)
    header = 8 + int.from_bytes(whole[:8], "little")
    found = 0
    for trial in range(12):
        data = bytearray(whole)
        place = rng.randrange(header) if trial % 4 == 0 else rng.randrange(header, len(data))
        data[place] ^= 1 << rng.randrange(8)
        (copied / WEIGHTS).write_bytes(data)
        try:
            verify_folder(copied)
        except ArtifactError:
            found += 1
        else:
            assert decoded(copied) == decoded(folder)
    assert found >= 9
