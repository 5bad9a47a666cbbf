"""Every way a folder can be broken ends in one line that names the layer."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import bitsfusion  # noqa: F401  registers with diffusers
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.reader import open_folder
from bitsfusion.artifact.tensors import encode_layer
from bitsfusion.artifact.verify import verify, verify_folder
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.io.hashes import sha256_json

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
        (lambda c: c["layers"][LAYER].update(shape=[1 << 20, 1 << 20]), f"^{LAYER}: got shape .* as in the model"),
        (lambda c: c["layers"][LAYER].update(sha256="x"), f"layers.{LAYER}.sha256"),
        (lambda c: c["layers"].update(ghost=c["layers"][LAYER]), "^ghost: got a layer that the model does not have"),
        (lambda c: c["layers"].pop(LAYER), f"^{LAYER}: got no bits"),
        (lambda c: c["removed"].pop("time_embedding.linear_1"), "^time_embedding.linear_1: got no bits"),
        (lambda c: c.update(new_key=1), "new_key: Extra inputs"),
        (lambda c: c.update({"self": 1}), "self: Extra inputs"),
        (lambda c: c.update(format_version=3), "got format_version 3, wanted 1 or 2"),
        (lambda c: c.update(format_version=2), "got cached time features in format_version 2, wanted 1"),
        (lambda c: c["time_features"]["steps"].__setitem__(0, 980.5), "in format_version 1, wanted 2"),
        (lambda c: c["time_features"]["steps"].__setitem__(0, 0.1), "wanted a whole number, or a fraction in float32"),
        (lambda c: c["time_features"].update(channels=3), "^time_proj: .*wanted"),
        (lambda c: c["time_features"].update(steps=[]), "time_features.cached: .*belong to cached"),
        (lambda c: c["time_features"].update(kind="basis"), "time_features.basis.rank: Field required"),
        (lambda c: c["time_features"].update(kind="spline"), "time_features: .*spline.* does not match"),
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
    verify_folder(copied / "unet")


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


HUGE = 10**9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(_class_name="../../os"), "wanted UNet2DConditionModel"),
        (lambda c: c.update(_class_name="StableDiffusionPipeline"), "wanted UNet2DConditionModel"),
        (
            lambda c: c.update(_class_name="AutoencoderKL"),
            "AutoencoderKL refuses it|that the model does not have",
        ),
        (lambda c: c.update(_class_name=["UNet2DConditionModel"]), "wanted UNet2DConditionModel"),
        (lambda c: c.pop("_class_name"), "got _class_name None"),
        (lambda c: c.update(block_out_channels=[HUGE, HUGE]), "block_out_channels: got a number of 30 bits"),
        (lambda c: c.update(layers_per_block=HUGE), "layers_per_block: got a number of 30 bits"),
        (lambda c: c.update(layers_per_block=10**6), "more than 10000 modules"),
        (lambda c: c.update(transformer_layers_per_block=10**6), "more than 10000 modules"),
        (lambda c: c.update(block_out_channels=[10**6, 10**6]), "got shape .*, wanted .*1000000"),
        (lambda c: c.update(down_block_types=c["down_block_types"] * 10**5), "refuses it: Must provide the same"),
        (lambda c: c.update(norm_num_groups=7), "refuses it: "),
        (lambda c: c.update(act_fn="line\nbreak"), "refuses it: "),
        (lambda c: c.update(extra=nested(100)), "extra: got more than 32 levels of nesting"),
        (
            lambda c: c["quantization_config"].update(provenance={"a": nested(100)}),
            "provenance: got more than 32 levels",
        ),
    ],
)
def test_a_model_beyond_all_bounds(copied: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    """Refused before it is built, in a second or two on an idle machine."""
    config = json.loads((copied / CONFIG).read_text())
    change(config)
    (copied / CONFIG).write_text(json.dumps(config))
    for look in (verify_folder, inspect_folder):
        start = time.perf_counter()
        with pytest.raises(ArtifactError, match=says) as caught:
            look(copied)
        assert time.perf_counter() - start < 20
        assert str(caught.value).isprintable()


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' twice"),
        ('{"quantization_config": {"layers": {}, "layers": {}}}', "the key 'layers' twice"),
        ('{"a": NaN}', "the number NaN"),
        ('{"a": -Infinity}', "the number -Infinity"),
        ('{"a": ' * 100_000, "JSON nested too deeply"),
        ("[" * 100_000, "JSON nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ("[]", "a JSON list"),
        ("\ufeff{}", "BOM"),
        (" " * (5 << 20), "got 5242880 bytes, wanted at most 4194304"),
    ],
)
def test_json_that_is_read_in_two_ways_or_not_at_all(copied: Path, text: str, says: str) -> None:
    (copied / CONFIG).write_text(text)
    with pytest.raises(ArtifactError, match=f"{CONFIG}: .*{says}") as caught:
        verify_folder(copied)
    assert str(caught.value).isprintable()


BAD_NAMES = ["../../x", "a/../../b", "/etc/passwd", "a\nb", "a..b", "", ".", "a" * 300, "\x1b[31m", "ä", "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_layer_has(copied: Path, name: str) -> None:
    change_config(copied, lambda c: c["layers"].update({name: c["layers"][LAYER]}))
    for load in (verify_folder, lambda path: UNet2DConditionModel.from_pretrained(path / "unet")):
        with pytest.raises(ArtifactError, match=r"^quantization_config: layers\.") as caught:
            load(copied)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def change_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    made = change(header)
    text = (made if isinstance(made, str) else json.dumps(header)).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def moved(header: dict[str, Any], by: int) -> None:
    """All tensors but the first move by so many bytes: a hole, or an overlap."""
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] > 0:
            entry["data_offsets"] = [place + by for place in entry["data_offsets"]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: moved(h, 8), "got byte .* as its first, wanted"),
        (lambda h: moved(h, -8), "got byte .* as its first, wanted"),
        (lambda h: h[PACKED].update(data_offsets=h["conv_in.packed"]["data_offsets"]), "got other offsets"),
        (lambda h: h[PACKED].update(data_offsets=[1 << 62, 1 << 63]), f"^{PACKED}: got a shape or offsets"),
        (lambda h: h[PACKED].update(shape=[1 << 40]), f"^{PACKED}: got other offsets in the header than U8"),
        (lambda h: h[PACKED].update(shape=[-1]), f"^{PACKED}: got a shape or offsets"),
        (lambda h: h[PACKED].update(shape=[True]), f"^{PACKED}: got a shape or offsets"),
        (lambda h: h[PACKED].update(dtype="F64"), f"^{PACKED}: got dtype 'F64'"),
        (lambda h: h[PACKED].update(dtype=["U8"]), f"^{PACKED}: got dtype"),
        (lambda h: h[PACKED].update(more=1), f"^{PACKED}: got an odd entry"),
        (lambda h: h.update({"../../x": h.pop(PACKED)}), r"^'../../x': got an odd name"),
        (lambda h: h.update({"a\nb": h.pop(PACKED)}), r"^'a\\nb': got an odd name"),
        (lambda h: h.update({"ghost.packed": h.pop(PACKED)}), f"^{LAYER}: got no tensor"),
        (lambda h: h.update(__metadata__={"format": 1}), "__metadata__"),
        (lambda h: json.dumps(h)[:-1] + f', "{PACKED}": {json.dumps(h[PACKED])}}}', f"the key '{PACKED}' twice"),
        (lambda h: '{"a": ' * 5000, "JSON nested too deeply"),
        (lambda h: " " + json.dumps(h), "a header that is no JSON object"),
    ],
)
def test_headers_that_lie(copied: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    change_header(copied, change)
    for look in (verify_folder, inspect_folder):
        with pytest.raises(ArtifactError, match=says) as caught:
            look(copied)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("length", [0, 1, 99_000_000, 1 << 40, (1 << 64) - 1])
def test_lengths_of_a_header(copied: Path, length: int) -> None:
    data = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
    with pytest.raises(ArtifactError, match="wanted a safetensors file"):
        verify_folder(copied)


def test_weights_without_a_config(copied: Path) -> None:
    (copied / CONFIG).unlink()
    for path in (copied, copied / "unet"):
        with pytest.raises(ArtifactError, match=f"{CONFIG}: got no such file beside packed weights"):
            verify_folder(path)


def test_a_pickle_beside_the_weights(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ArtifactError, match="may be a pickle"):
        verify_folder(copied)


def test_a_broken_config_hides_nothing_else(copied: Path) -> None:
    """Every fault is listed, also as JSON: pickles and code in sub-folders, in capitals, hidden."""
    (copied / CONFIG).write_text("{")
    others = ("vae/old/weights.PKL", "vae/model.npz", ".cache/run.py", "tokenizer/x.joblib")
    for name in others:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes(b"cos\nsystem\n")
    found = verify(copied).to_dict()
    assert not found["whole"]
    assert CONFIG in found["faults"][0] and all(any(name in fault for fault in found["faults"]) for name in others)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "model_index.json"])
def test_a_pointer_of_git_lfs(copied: Path, name: str) -> None:
    (copied / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 334643268\n")
    with pytest.raises(ArtifactError, match=r"got a git-lfs pointer.*git lfs pull"):
        verify_folder(copied)


def test_links_are_followed_and_pipes_are_not_read(copied: Path, tmp_path: Path) -> None:
    """The hub's cache is made of links; a pipe would wait for ever."""
    for file in (CONFIG, WEIGHTS):
        (copied / file).rename(tmp_path / Path(file).name)
        (copied / file).symlink_to(tmp_path / Path(file).name)
    verify_folder(copied)
    (copied / WEIGHTS).unlink()
    os.mkfifo(copied / WEIGHTS)
    with pytest.raises(ArtifactError, match="got no regular file"):
        verify_folder(copied)
    (copied / WEIGHTS).unlink()
    (copied / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match="got no regular file"):
        verify_folder(copied)
    (copied / WEIGHTS).unlink()
    (copied / WEIGHTS).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="No such file"):
        verify_folder(copied)


@pytest.fixture
def sharded(folder: Path, tmp_path: Path) -> Path:
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    return tmp_path / "shards"


def test_shards_are_read_as_one_file(sharded: Path, folder: Path) -> None:
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    verify_folder(sharded)
    assert decoded(sharded) == decoded(folder)
    one, many = inspect_folder(folder), inspect_folder(sharded)
    assert (one.layers, one.bytes_in_memory) == (many.layers, many.bytes_in_memory)
    assert many.bytes_on_disk.total == sum(file.stat().st_size for file in files)
    assert many.bytes_on_disk.header > one.bytes_on_disk.header > 0
    loaded = UNet2DConditionModel.from_pretrained(sharded).state_dict()
    for name, tensor in UNet2DConditionModel.from_pretrained(folder / "unet").state_dict().items():
        assert torch.equal(tensor, loaded[name])


def change_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda files: files.update({PACKED: "missing.safetensors"}), "missing.safetensors: got No such file"),
        (lambda files: files.update({PACKED: f"../{files[PACKED]}"}), f"^{PACKED}: got file '../"),
        (lambda files: files.update({PACKED: "/etc/passwd"}), f"^{PACKED}: got file '/etc/passwd'"),
        (lambda files: files.update({PACKED: "/x/y.safetensors"}), f"^{PACKED}: got file '/x/y.safetensors'"),
        (lambda files: files.update({PACKED: "model.bin"}), f"^{PACKED}: got file 'model.bin'"),
        (lambda files: files.update({PACKED: 3}), f"^{PACKED}: got file of type int"),
        (lambda files: files.update({"a/../../b": files[PACKED]}), "^'a/../../b': got an odd name"),
        (lambda files: files.update({"ghost.packed": files[PACKED]}), "^ghost: got tensor ghost.packed only in the"),
        (lambda files: files.pop(PACKED), f"^{LAYER}: got tensor {PACKED} only in a file"),
        (lambda files: files.clear(), "got no weight_map"),
    ],
)
def test_an_index_that_lies(sharded: Path, change: Callable[[dict[str, str]], Any], says: str) -> None:
    change_index(sharded, change)
    for look in (verify_folder, inspect_folder):
        with pytest.raises(ArtifactError, match=says):
            look(sharded)


def test_a_shard_gone_twice_or_beside_a_single_file(sharded: Path, folder: Path) -> None:
    files = sorted(sharded.glob("*.safetensors"))
    data = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(ArtifactError, match="got it in two files"):
        verify_folder(sharded)
    files[0].unlink()
    with pytest.raises(ArtifactError, match=f"{files[0].name}: got No such file"):
        verify_folder(sharded)
    files[0].write_bytes(data)
    shutil.copy(folder / WEIGHTS, sharded)
    with pytest.raises(ArtifactError, match="wanted one of both"):
        verify_folder(sharded)


def test_loading_finds_what_verify_finds(copied: Path) -> None:
    """A flipped bit that decodes well, a changed bias, a tensor too many: none gets into a model."""
    whole = (copied / WEIGHTS).read_bytes()
    for change, says in (
        (lambda t: t.update({PACKED: with_scale(t[PACKED], 0.5)}), f"^{LAYER}: got weights of SHA-256"),
        (lambda t: t[f"{LAYER}.bias"].add_(1), "beside the packed layers: got SHA-256"),
        (lambda t: t[f"{LAYER}.bias"].fill_(float("nan")), f"^{LAYER}.bias: got NaN"),
        (lambda t: t.update({f"{LAYER}.weight": torch.zeros(2)}), f"^{LAYER}.weight: got a tensor"),
    ):
        (copied / WEIGHTS).unlink()
        (copied / WEIGHTS).write_bytes(whole)
        change_tensors(copied, change)
        with pytest.raises(ArtifactError, match=says):
            UNet2DConditionModel.from_pretrained(copied / "unet")


def decoded(folder: Path) -> dict[str, bytes]:
    """Everything that a file says, as bytes."""
    opened = open_folder(folder)
    with opened.tensors() as tensors:
        layers = {name: tensors.buffer(name).tobytes() for name in opened.config.layers}
        others = [name for name in tensors.names if not name.endswith(".packed")]
        return layers | {name: tensors.tensor(name).tobytes() for name in others}


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
