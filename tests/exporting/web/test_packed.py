"""The page's own reader of the packed folder against Python's: same weights, and nothing damaged gets through."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.exporting.web.conftest import Node

GOLDEN = Path(__file__).parents[2] / "artifact" / "golden"
FOLDERS = ["v1/cached", "v1/layers_8bit", "v1/text_encoder", "v1/vae", "v2/basis", "v2/fractions"]
DECODE = """
import { PackedModel, product } from "./packed.js";
import { sha256 } from "./sha256.js";
const results = given.map(([config, weights]) => {
  try {
    const model = new PackedModel("unet", readFileSync(config), [readFileSync(weights)]);
    const hashes = {};
    for (const name of Object.keys(model.config.layers)) {
      hashes[`${name}.weight`] = sha256(new Uint8Array(product(model.layer(name)).buffer));
    }
    for (const [name, { bytes }] of model.tensors) if (!name.endsWith(".packed")) hashes[name] = sha256(bytes);
    return hashes;
  } catch (error) {
    return error.message;
  }
});
print(results);
"""


def files(folder: Path) -> tuple[Path, Path]:
    (weights,) = folder.glob("*.safetensors")
    return folder / "config.json", weights


def test_decodes_to_what_was_packed(node: Node, whole_page: Path) -> None:
    found = node(DECODE, [[str(path) for path in files(GOLDEN / name)] for name in FOLDERS])
    for name, hashes in zip(FOLDERS, found, strict=True):
        version, folder = name.split("/")
        assert hashes == json.loads((GOLDEN / version / "expected.json").read_text())[folder]


def header(weights: bytes) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack("<Q", weights[:8])
    return json.loads(weights[8 : 8 + length]), 8 + length


def rewritten(weights: bytes, name: str, data: bytes) -> bytes:
    """The file with other bytes for one tensor."""
    entries, start = header(weights)
    order = sorted((entry["data_offsets"][0], key) for key, entry in entries.items() if key != "__metadata__")
    parts, made, place = [], {}, 0
    for _, key in order:
        begin, end = entries[key]["data_offsets"]
        part = data if key == name else weights[start + begin : start + end]
        shape = [len(part)] if entries[key]["dtype"] == "U8" else entries[key]["shape"]
        made[key] = {**entries[key], "shape": shape, "data_offsets": [place, place + len(part)]}
        place += len(part)
        parts.append(part)
    text = json.dumps(made).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def test_damage_is_named(node: Node, whole_page: Path, tmp_path: Path) -> None:
    config, weights = (path.read_bytes() for path in files(GOLDEN / "v1/layers_8bit"))
    entries, start = header(weights)
    name = next(key for key in entries if key.endswith(".packed"))
    begin, end = entries[name]["data_offsets"]
    stored = weights[start + begin : start + end]
    other = next(key for key, entry in entries.items() if entry.get("dtype") == "F32")
    place = start + entries[other]["data_offsets"][0]
    values = json.loads(config)
    values["quantization_config"]["layers"][name.removesuffix(".packed")]["bits"] ^= 1
    cases = {
        "bytes after the zstd frame": (config, rewritten(weights, name, stored + b"\0")),
        "a zstd frame that is cut": (config, rewritten(weights, name, stored[:-1])),
        "no zstd frame": (config, rewritten(weights, name, stored[:4] + b"\0" + stored[5:])),
        "wanted scales of": (config, rewritten(weights, name, b"\xff\xff\xff\x7f" + stored[4:])),
        "biases and norms": (config, weights[:place] + bytes([weights[place] ^ 1]) + weights[place + 1 :]),
        "quantization_config of another hash": (json.dumps(values).encode(), weights),
        "got key": (config.replace(b'"quantization_config"', b'"act_fn": 1, "act_fn": 2, "quantization_config"'), b""),
        "is no JSON": (config.replace(b": ", b": NaN, ", 1), b""),
        "wanted a safetensors file": (config, b"1234567"),
        "bytes of tensors": (config, weights + b"\0"),
    }
    asked = []
    for index, case in enumerate(cases.values()):
        paths = [tmp_path / f"{index}.{kind}" for kind in ("json", "safetensors")]
        for path, content in zip(paths, case, strict=True):
            path.write_bytes(content)
        asked.append([str(path) for path in paths])
    for message, found in zip(cases, node(DECODE, asked), strict=True):
        assert isinstance(found, str)
        assert message in found


def test_any_flipped_bit_is_found(node: Node, whole_page: Path, tmp_path: Path) -> None:
    config, weights = files(GOLDEN / "v2/basis")
    whole = weights.read_bytes()
    flips = np.random.default_rng(0).integers(0, [len(whole), 8], (100, 2))
    asked = []
    for index, (place, bit) in enumerate(flips.tolist()):
        (damaged := tmp_path / str(index)).write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
        )
        asked.append([str(config), str(damaged)])
    assert all(isinstance(found, str) for found in node(DECODE, asked))


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_sha256(node: Node, size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size))
    script = """
    import { Sha256 } from "./sha256.js";
    const bytes = Uint8Array.from(given);
    const parts = [0, 1, 63, 64, 70].map((cut) =>
      new Sha256().update(bytes.subarray(0, cut)).update(bytes.subarray(cut)).hex());
    print(parts);
    """
    assert set(node(script, list(data))) == {hashlib.sha256(data).hexdigest()}


def test_numbers_are_written_as_python_writes_them(node: Node) -> None:
    values: list[Any] = [
        0.5,
        1.0,
        -2.5,
        1e-5,
        0.0001,
        123456.75,
        1e16,
        1e15,
        1.5e300,
        5e-324,
        3,
        -7,
        "é\u007f\U0001f600",
        None,
        True,
    ]
    script = """
    import { canonical, parseJson } from "./json.js";
    print(given.map((text) => canonical(parseJson(new TextEncoder().encode(text), "text"))));
    """
    assert node(script, [json.dumps(value) for value in values]) == [json.dumps(value) for value in values]
