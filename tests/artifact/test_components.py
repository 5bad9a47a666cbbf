"""Text encoders and the VAE, packed: the weights that were quantized, through the libraries' own loading and saving."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import bitsfusion  # noqa: F401  registers with diffusers and transformers
from bitsfusion.architectures.registry import ARCHITECTURES
from bitsfusion.artifact.inspect import inspect_pipeline
from bitsfusion.artifact.transformers_plugin import BitsFusionTextConfig
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.nn.packed import PACKED_LAYERS
from bitsfusion.pipelines.model_folder import left_out, open_model

from ..tiny.text import build_text_encoder
from .drawing import images, load
from .whole import pack, quantized

CLASSES = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL}
FILES = {"text_encoder": "model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}
LAYERS = {"text_encoder": "encoder.layers.0.mlp.fc1", "vae": "decoder.mid_block.resnets.0.conv1"}
NAMES = ("text_encoder", "vae")
TOKENS = torch.tensor([[0, 3, 5, 7, 1, 1, 1, 1]])


def output(name: str, model: Any) -> torch.Tensor:
    with torch.no_grad():
        if name == "text_encoder":
            return model(TOKENS).last_hidden_state
        generator = torch.Generator().manual_seed(0)
        picture = torch.rand(1, 3, 8, 8, generator=generator).to(model.dtype)
        return model.decode(model.encode(picture).latent_dist.mode()).sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_packed_is_quantized_bit_for_bit(
    pipeline: StableDiffusionPipeline, whole: Path, name: str, dtype: torch.dtype
) -> None:
    """Every layer of the class, none left dense, and the output of the dense model that holds these weights."""
    reference = copy.deepcopy(pipeline.components[name])
    weights = quantized(reference)
    model = CLASSES[name].from_pretrained(whole / name, dtype=dtype)
    packed = {key: module for key, module in model.named_modules() if isinstance(module, PACKED_LAYERS)}
    assert packed.keys() == weights.keys()
    assert {module.bits for module in packed.values()} == set(range(1, 9))
    for key, module in packed.items():
        assert torch.equal(module.weight, weights[key].to(dtype)), key
        reference.get_submodule(key).weight.data = weights[key]
    assert not any(parameter.dim() > 1 for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert torch.equal(output(name, model), output(name, reference.to(dtype)))


def test_the_whole_pipeline_loads_and_draws(pipeline: StableDiffusionPipeline, whole: Path) -> None:
    loaded = load(whole)
    assert isinstance(loaded.text_encoder.get_input_embeddings(), PACKED_LAYERS)
    reference = load(whole)
    for name in NAMES:
        model = copy.deepcopy(pipeline.components[name])
        for key, weight in quantized(model).items():
            model.get_submodule(key).weight.data = weight
        setattr(reference, name, model)
    assert np.array_equal(images(loaded), images(reference))
    half = images(load(whole, dtype=torch.bfloat16))
    assert np.isfinite(half).all() and np.abs(half - images(loaded)).mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saving_writes_what_was_loaded(whole: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    load(whole, dtype=dtype).save_pretrained(tmp_path / "saved")
    verify_folder(tmp_path / "saved")
    for name in NAMES:
        file = FILES[name]
        assert (tmp_path / "saved" / name / file).read_bytes() == (whole / name / file).read_bytes()
    again = load(tmp_path / "saved", dtype=dtype)
    for name in NAMES:
        model = CLASSES[name].from_pretrained(whole / name, dtype=dtype)
        assert torch.equal(output(name, getattr(again, name)), output(name, model))


@pytest.mark.parametrize("name", NAMES)
def test_shards(whole: Path, tmp_path: Path, name: str) -> None:
    model = CLASSES[name].from_pretrained(whole / name)
    model.save_pretrained(tmp_path / name, max_shard_size="5KB")
    assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
    verify_folder(tmp_path / name)
    again = CLASSES[name].from_pretrained(tmp_path / name)
    assert torch.equal(output(name, again), output(name, model))


@pytest.mark.parametrize("name", NAMES)
def test_casting_is_loading_in_that_dtype(whole: Path, tmp_path: Path, name: str) -> None:
    loaded = CLASSES[name].from_pretrained(whole / name, dtype=torch.bfloat16)
    cast = copy.deepcopy(CLASSES[name].from_pretrained(whole / name)).to(torch.bfloat16)
    assert torch.equal(output(name, cast), output(name, loaded))
    assert cast.half().dtype == torch.float16 and output(name, cast).dtype == torch.float16
    assert cast.float().dtype == torch.float32
    cast.save_pretrained(tmp_path)
    verify_folder(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_dequantize(whole: Path, tmp_path: Path, name: str) -> None:
    """Ordinary layers with equal weights, saved as an ordinary folder."""
    model = CLASSES[name].from_pretrained(whole / name)
    expected = output(name, model)
    model.dequantize()
    assert not any(isinstance(module, PACKED_LAYERS) for module in model.modules())
    assert torch.equal(output(name, model), expected)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(output(name, CLASSES[name].from_pretrained(tmp_path)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_changed_tensors_are_not_saved(whole: Path, tmp_path: Path, name: str) -> None:
    model = CLASSES[name].from_pretrained(whole / name)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(InputError, match="got other values than were loaded"):
        model.save_pretrained(tmp_path)


def change_config(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def flipped(payload: torch.Tensor) -> torch.Tensor:
    changed = payload.clone()
    changed[len(changed) // 2] ^= 0x40
    return changed


def lying(payload: torch.Tensor) -> torch.Tensor:
    changed = payload.clone()
    changed[:4] = 255
    return changed


DAMAGE: dict[str, Callable[[dict[str, torch.Tensor], str], Any]] = {
    "a flipped byte": lambda t, layer: t.update({f"{layer}.packed": flipped(t[f"{layer}.packed"])}),
    "a length that lies": lambda t, layer: t.update({f"{layer}.packed": lying(t[f"{layer}.packed"])}),
    "another dtype": lambda t, layer: t.update({f"{layer}.packed": t[f"{layer}.packed"].float()}),
    "a missing layer": lambda t, layer: t.pop(f"{layer}.packed"),
    "a missing bias": lambda t, layer: t.pop(f"{layer}.bias"),
    "a dense weight": lambda t, layer: t.update({f"{layer}.weight": torch.zeros(2, 2)}),
    "a bias of another shape": lambda t, layer: t.update({f"{layer}.bias": torch.zeros(3)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", NAMES)
def test_damage_names_the_layer(whole: Path, tmp_path: Path, name: str, damage: str) -> None:
    copied, layer = tmp_path / "copied", LAYERS[name]
    shutil.copytree(whole, copied)
    change_tensors(copied / name / FILES[name], lambda tensors: DAMAGE[damage](tensors, layer))
    with pytest.raises(ArtifactError, match=rf"^{name}: {layer}[.:]") as caught:
        verify_folder(copied)
    assert "\n" not in str(caught.value)
    kind = (ArtifactError, ValueError) if name == "vae" and damage == "a bias of another shape" else ArtifactError
    with pytest.raises(kind, match=layer):
        CLASSES[name].from_pretrained(copied / name)


@pytest.mark.parametrize("name", NAMES)
def test_another_value_beside_the_layers(whole: Path, tmp_path: Path, name: str) -> None:
    copied = tmp_path / name
    shutil.copytree(whole / name, copied)
    change_tensors(copied / FILES[name], lambda tensors: tensors[f"{LAYERS[name]}.bias"].add_(1))
    for read in (verify_folder, CLASSES[name].from_pretrained):
        with pytest.raises(ArtifactError, match="beside the packed layers: got SHA-256"):
            read(copied)


CONFIGS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("text_encoder", lambda c: c.update(architectures=["MT5EncoderModel"]), "got _class_name 'MT5EncoderModel'"),
    ("text_encoder", lambda c: c.pop("architectures"), "got _class_name None"),
    (
        "text_encoder",
        lambda c: c.update(architectures=["CLIPTextModelWithProjection"]),
        "that the model does not",
    ),
    ("text_encoder", lambda c: c.update(vocab_size=10**9), "vocab_size: got a number of 30 bits"),
    ("text_encoder", lambda c: c.update(hidden_act="no such"), "CLIPTextModel refuses it"),
    ("text_encoder", lambda c: c.update(transformers_weights="other.bin"), "wanted none that chooses files or code"),
    ("text_encoder", lambda c: c.update(_attn_implementation="some/kernel"), "wanted none that chooses files or code"),
    ("text_encoder", lambda c: c.pop("quantization_config"), "beside packed weights"),
    ("vae", lambda c: c.update(_class_name="UNet2DConditionModel"), "UNet2DConditionModel refuses it|does not have"),
    ("vae", lambda c: c.update(latent_channels=5), "got shape .* as in the model"),
    ("vae", lambda c: c["quantization_config"].update(format_version=2), "time features in format_version 2, wanted 1"),
    ("vae", lambda c: c["quantization_config"]["layers"].pop("quant_conv"), "got content of SHA-256"),
]


@pytest.mark.parametrize(("name", "change", "says"), CONFIGS)
def test_configs_that_do_not_fit(
    whole: Path, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(whole, copied, ignore=shutil.ignore_patterns("unet"))
    change_config(copied / name / "config.json", change)
    with pytest.raises(ArtifactError, match=says) as caught:
        verify_folder(copied)
    assert name in str(caught.value) and str(caught.value).isprintable()


def test_quantizing_a_dense_text_encoder_is_refused(dense_folder: Path, whole: Path) -> None:
    values = json.loads((whole / "text_encoder" / "config.json").read_text())["quantization_config"]
    with pytest.raises(InputError, match="got bitsfusion for a dense model"):
        CLIPTextModel.from_pretrained(dense_folder / "text_encoder", quantization_config=BitsFusionTextConfig(**values))


def test_inspection_adds_up(pipeline: StableDiffusionPipeline, dense_folder: Path, whole: Path, tmp_path: Path) -> None:
    parts = {part.name: part for part in inspect_pipeline(whole)}
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert sum(part.bytes_on_disk for part in parts.values()) == sum(path.stat().st_size for path in files)
    forms = {name: part.form for name, part in parts.items()}
    assert forms == {
        **dict.fromkeys(("unet", *NAMES), "packed"),
        **dict.fromkeys(("tokenizer", "scheduler", "model_index.json", "SHA256SUMS"), "no weights"),
    }
    for name in NAMES:
        inspection = parts[name].packed
        assert inspection is not None and inspection.fallbacks == {}
        layers = quantized(pipeline.components[name])
        assert inspection.weights == sum(weight.numel() for weight in layers.values())
        assert inspection.time_features["kind"] == "none"
    pack(dense_folder, tmp_path / "vae_alone", ("unet", "vae"))
    assert {p.name: p.form for p in inspect_pipeline(tmp_path / "vae_alone")}["text_encoder"] == "dense"


def test_a_text_encoder_with_a_projection(tmp_path: Path) -> None:
    """SDXL's second one; and names as published files have them."""
    model = build_text_encoder(32, CLIPTextModelWithProjection, projection_dim=24, num_hidden_layers=2)
    model.save_pretrained(tmp_path / "in" / "text_encoder_2")
    index = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    (tmp_path / "in" / "model_index.json").write_text(json.dumps(index))
    pack(tmp_path / "in", tmp_path / "out", ("text_encoder_2",))
    verify_folder(tmp_path / "out")
    loaded = CLIPTextModelWithProjection.from_pretrained(tmp_path / "out" / "text_encoder_2")
    for name, weight in quantized(model).items():
        assert torch.equal(loaded.get_submodule(name).weight, weight), name
        model.get_submodule(name).weight.data = weight
    assert torch.equal(loaded(TOKENS).text_embeds, model(TOKENS).text_embeds)
    loaded.save_pretrained(tmp_path / "saved")
    verify_folder(tmp_path / "saved")


def test_published_names_of_a_text_encoder(dense_folder: Path, tmp_path: Path) -> None:
    """transformers before 5 wrote the prefix text_model, and position numbers."""
    shutil.copytree(dense_folder / "text_encoder", tmp_path / "x")
    tensors = load_file(tmp_path / "x" / "model.safetensors")
    old = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    save_file(old, tmp_path / "x" / "model.safetensors", {"format": "pt"})
    new, before = (
        open_model(folder, ARCHITECTURES["CLIPTextModel"]) for folder in (dense_folder / "text_encoder", tmp_path / "x")
    )
    for name in tensors:
        assert torch.equal(new.tensor(name), before.tensor(name))
    assert left_out(new) is None
    assert "position_ids" in str(left_out(before))
