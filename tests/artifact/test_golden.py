"""Old files are read for ever; and a second reader, written from docs/format.md alone, comes to the same weights."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.tensors import tensor_bytes
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PACKED_LAYERS

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = [
    f"{version.name}/{folder.name}" for version in sorted(GOLDEN.iterdir()) for folder in sorted(version.glob("*/"))
]
FOLDERS = [name for name in FOLDERS if (GOLDEN / name).is_dir()]


def expected(name: str) -> dict[str, str]:
    version, folder = name.split("/")
    hashes: dict[str, dict[str, str]] = json.loads((GOLDEN / version / "expected.json").read_text())
    return hashes[folder]


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def test_there_are_old_folders() -> None:
    assert FOLDERS == ["v1/cached", "v1/layers_8bit", "v1/text_encoder", "v1/vae", "v2/basis", "v2/fractions"]


def load(name: str, folder: Path | None = None) -> Any:
    made: Any = {"v1/text_encoder": CLIPTextModel, "v1/vae": AutoencoderKL}.get(name, UNet2DConditionModel)
    return made.from_pretrained(folder or GOLDEN / name)


@pytest.mark.parametrize("name", FOLDERS)
def test_decodes_to_what_was_packed(name: str) -> None:
    verify_folder(GOLDEN / name)
    model = load(name)
    packed = {layer: module for layer, module in model.named_modules() if isinstance(module, PACKED_LAYERS)}
    found = {f"{layer}.weight": sha256(module.weight) for layer, module in packed.items()}
    assert {module.bits for module in packed.values()} == set(range(1, 9))
    for key, tensor in model.state_dict().items():
        if not key.endswith(".packed"):
            found[key] = sha256(tensor.half() if key.startswith("time_proj.") else tensor)
    assert found == expected(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_saved_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    load(name).save_pretrained(tmp_path)
    verify_folder(tmp_path)
    assert SecondReader(tmp_path).hashes() == expected(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_second_reader_agrees(name: str) -> None:
    second = SecondReader(GOLDEN / name)
    assert second.hashes() == expected(name)
    second.check_hashes()
    model = load(name)
    for layer in second.layers:
        for dtype in (torch.float32, torch.float16):
            weight = torch.from_numpy(second.weight(layer)).to(dtype)
            assert torch.equal(model.get_submodule(layer).unpack_weight(dtype), weight)
    seen = inspect_folder(GOLDEN / name)
    assert seen.average_bits == pytest.approx(second.average_bits())
    assert seen.bytes_on_disk.header == second.header_bytes
    assert seen.bytes_on_disk.total == next((GOLDEN / name).glob("*.safetensors")).stat().st_size
    for layer in seen.layers:
        counts = np.unique(second.levels(layer.name), return_counts=True)[1]
        assert layer.entropy == pytest.approx(-(counts * np.log2(counts / counts.sum())).sum() / counts.sum())


@pytest.mark.parametrize("name", ["v1/cached", "v2/fractions"])
def test_the_second_reader_knows_where_the_columns_are(name: str) -> None:
    second = SecondReader(GOLDEN / name)
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / name)
    for index, step in enumerate(second.config["time_features"]["steps"]):
        rows = unet.time_proj(torch.tensor([step]))
        for name, (start, end) in second.columns().items():
            ours = unet.get_submodule(name)(rows)
            assert torch.equal(ours[0], torch.tensor(second.rows()[index, start:end]).float())


def test_the_second_reader_comes_to_the_same_features_at_any_step() -> None:
    second = SecondReader(GOLDEN / "v2/basis")
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / "v2/basis")
    steps = [-2, -1.5, 0, 0.25, 61.5, 62, 500, 998.75, 999, 1000, 1022]
    ours = unet.time_proj(torch.tensor(steps))
    assert torch.allclose(ours, torch.from_numpy(second.features(steps)).float(), rtol=1e-4, atol=1e-4)
    for step in (-2.25, 1022.5):
        with pytest.raises(InputError, match=r"this model covers every step from -2 to 1022; .*--cover any"):
            unet.time_proj(torch.tensor([step]))


class SecondReader:
    """Written from docs/format.md with json, struct, numpy and zstandard; nothing of bitsfusion or safetensors."""

    PER_BYTE = {1: 5, 2: 3, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert self.config["quant_method"] == "bitsfusion" and self.config["format_version"] in (1, 2)
        self.layers: dict[str, Any] = self.config["layers"]
        text = (folder / "model.safetensors").exists()
        data = (folder / ("model.safetensors" if text else "diffusion_pytorch_model.safetensors")).read_bytes()
        self.header_bytes = 8 + struct.unpack("<Q", data[:8])[0]
        self.header = json.loads(data[8 : self.header_bytes])
        self.header.pop("__metadata__", None)
        self.data = data[self.header_bytes :]

    def stored(self, name: str) -> np.ndarray:
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        dtype = {"U8": "u1", "F16": "<f2", "F32": "<f4"}[entry["dtype"]]
        return np.frombuffer(self.data[begin:end], dtype).reshape(entry["shape"])

    def memory(self, layer: str) -> bytes:
        stored = self.stored(f"{layer}.packed").tobytes()
        (n,) = struct.unpack("<I", stored[:4])
        planes, radix = zstandard.decompress(stored[4 : 4 + n]), zstandard.decompress(stored[4 + n :])
        out = self.layers[layer]["shape"][0]
        assert len(planes) == 4 * out
        return bytes(planes[k * out + o] for o in range(out) for k in range(4)) + radix

    def levels(self, layer: str) -> np.ndarray:
        bits, shape = self.layers[layer]["bits"], self.layers[layer]["shape"]
        count, numbers = math.prod(shape), 2**bits + 1
        radix = np.frombuffer(self.memory(layer)[4 * shape[0] :], np.uint8).astype(np.int64)
        if bits == 8:
            assert len(radix) == count + -(-count // 8)
            index = np.arange(count)
            symbols = radix[:count] + 256 * (radix[count + index // 8] >> (index % 8) & 1)
        else:
            n = self.PER_BYTE[bits]
            assert len(radix) == -(-count // n)
            symbols = np.stack([radix // numbers**place % numbers for place in range(n)], axis=1).ravel()[:count]
        return (symbols - 2 ** (bits - 1)).reshape(shape)

    def weight(self, layer: str) -> np.ndarray:
        levels = self.levels(layer).astype(np.float32)
        scale = np.frombuffer(self.memory(layer)[: 4 * len(levels)], "<f4")
        return levels * scale.reshape(-1, *[1] * (levels.ndim - 1))

    def rows(self) -> np.ndarray:
        return self.stored("time_proj.rows")

    def features(self, steps: list[float]) -> np.ndarray:
        """[steps, channels] of a basis, in float64."""
        entry = self.config["time_features"]
        mean, basis, curve = (self.stored(f"time_proj.{name}").astype(float) for name in ("mean", "basis", "curve"))
        assert basis.shape == (entry["rank"], entry["channels"]) and curve.shape == (entry["points"], entry["rank"])
        rows = []
        for step in steps:
            x = (step - entry["start"]) / entry["spacing"]
            i = min(math.floor(x), entry["points"] - 4)
            u = x - i
            v = 1 - u
            taps = np.array([v**3, 3 * u**3 - 6 * u**2 + 4, 3 * v**3 - 6 * v**2 + 4, u**3]) / 6
            rows.append(mean + taps @ curve[i : i + 4] @ basis)
        return np.stack(rows)

    def columns(self) -> dict[str, tuple[int, int]]:
        """Projection -> its first column and the one after its last."""
        blocks = ("down_blocks", "up_blocks", "mid_block")
        names = [name for name in self.config["removed"] if name.endswith(".time_emb_proj")]
        names.sort(key=lambda name: (blocks.index(name.split(".")[0]), [int(n) for n in re.findall(r"\.(\d+)", name)]))
        ends = np.cumsum([self.config["removed"][name][0] for name in names]).tolist()
        assert ends[-1] == self.config["time_features"]["channels"]
        return dict(zip(names, zip([0, *ends], ends, strict=False), strict=True))

    def average_bits(self) -> float:
        kept = {name: math.prod(entry["shape"]) for name, entry in self.layers.items()}
        total = sum(kept.values()) + sum(math.prod(shape) for shape in self.config["removed"].values())
        features = self.config["time_features"]
        counted = sum(math.log2(2 ** self.layers[name]["bits"] + 1) * count for name, count in kept.items())
        if features["kind"] == "basis":
            stored = features["channels"] * (1 + features["rank"]) + features["points"] * features["rank"]
        else:
            stored = len(features["steps"]) * features["channels"]
        return (counted + 16 * stored) / total

    def hashes(self) -> dict[str, str]:
        found = {f"{layer}.weight": hashlib.sha256(self.weight(layer).tobytes()).hexdigest() for layer in self.layers}
        for name in self.header:
            if not name.endswith(".packed"):
                found[name] = hashlib.sha256(self.stored(name).tobytes()).hexdigest()
        return found

    def check_hashes(self) -> None:
        for layer, entry in self.layers.items():
            assert hashlib.sha256(self.memory(layer)).hexdigest() == entry["sha256"]
        others = hashlib.sha256()
        for name in sorted(self.header, key=str.encode):
            if not name.endswith(".packed"):
                tensor = self.stored(name)
                dtype = {"<f4": "torch.float32", "<f2": "torch.float16"}[tensor.dtype.str]
                others.update(f"{name} {dtype} {'x'.join(map(str, tensor.shape))}\n".encode() + tensor.tobytes())
        assert others.hexdigest() == self.config["others_sha256"]
        apart = ("config_sha256", "provenance")
        content = {key: value for key, value in self.config.items() if key not in apart and not key.startswith("_")}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(text.encode("ascii")).hexdigest() == self.config["config_sha256"]


def test_the_golden_files_hold_the_odd_cases() -> None:
    """A ninth bit, unused places in a last byte, scales of 0, below 0, tiny and huge."""
    second = SecondReader(GOLDEN / "v1/cached")
    by_bits = {bits: [name for name, entry in second.layers.items() if entry["bits"] == bits] for bits in range(1, 9)}
    assert any(second.levels(name).max() == 128 for name in by_bits[8])
    for bits in (1, 2):
        assert any(math.prod(second.layers[name]["shape"]) % second.PER_BYTE[bits] for name in by_bits[bits])
    scales = np.frombuffer(second.memory("mid_block.resnets.0.conv1")[:16], "<f4")
    assert scales.tolist() == np.array([0, -0.01, 1e-30, 1e30], np.float32).tolist()
