"""Text encoders and autoencoders of diffusion transformers: packed, loaded, run, made dense and saved again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitsfusion  # noqa: F401  registers the format
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import ARCHITECTURES, model_layers
from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.parts import parts_of_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.writer import write_parts
from bitsfusion.nn.packed import PACKED_LAYERS
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, dequantize, quantize
from bitsfusion.pipelines.folder import read_folder
from bitsfusion.pipelines.model_folder import open_model

from ..tiny.encoders import AUTOENCODERS, ENCODERS, build_autoencoder, build_encoder

IDS = torch.tensor([[3, 17, 39, 5]])


def run(model: Any) -> list[Tensor]:
    """What pipelines take of it: every hidden state, or latents and a picture."""
    with torch.no_grad():
        if not isinstance(model, tuple(ENCODER_CLASSES)):
            picture = torch.linspace(-1, 1, 3 * 256).view(1, 3, 16, 16)
            framed = type(model).__name__ == "AutoencoderKLQwenImage"
            latents = model.encode(picture.unsqueeze(2) if framed else picture)
            latents = latents.latent if hasattr(latents, "latent") else latents.latent_dist.mode()
            return [latents, model.decode(latents).sample]
        output = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True)
        return [*output.hidden_states, output[0]]


ENCODER_CLASSES = {type(build_encoder(name)) for name in ENCODERS}


@pytest.fixture(scope="module", params=[*ENCODERS, *AUTOENCODERS])
def packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, dict[str, int], Path]:
    """A model, the bits of its layers, and the folder that it is packed into."""
    model = build_encoder(request.param) if request.param in ENCODERS else build_autoencoder(request.param)
    source = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(source / "dense")
    family = ARCHITECTURES[request.param]
    bits = {
        name: 8 if layer.role is LayerRole.FIRST_LAST else 2 + place % 4
        for place, (name, layer) in enumerate(model_layers(model, family).items())
    }
    parts = parts_of_folder(open_model(source / "dense", family), bits, ScaleInit.EXACT)
    write_parts({"": parts}, read_folder(source / "dense"), source / "packed")
    return model, bits, source / "packed"


def test_unpacked_weights_are_the_quantized_ones(packed: tuple[Any, dict[str, int], Path]) -> None:
    model, bits, folder = packed
    verify_folder(folder)
    assert not any(name.endswith("embed_tokens.weight") for name in inspect_folder(folder).fallbacks)
    loaded = type(model).from_pretrained(folder)
    found = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, PACKED_LAYERS)}
    assert found.keys() == bits.keys()
    for name, layer in found.items():
        weight = model.get_submodule(name).weight.detach()
        scale = layer_scale(name, weight, bits[name], ScaleInit.EXACT)
        assert torch.equal(layer.weight, dequantize(quantize(weight, scale, bits[name]), scale)), name


def test_computes_as_its_dequantized_twin_and_as_the_dense_class_with_those_weights(
    packed: tuple[Any, dict[str, int], Path],
) -> None:
    model, bits, folder = packed
    loaded = type(model).from_pretrained(folder)
    small = run(loaded)
    weights = {name: loaded.get_submodule(name).weight.clone() for name in bits}
    twin = type(model).from_pretrained(folder)
    twin.dequantize()
    assert not any(isinstance(layer, PACKED_LAYERS) for layer in twin.modules())
    dense = (
        build_encoder(type(model).__name__)
        if isinstance(model, tuple(ENCODER_CLASSES))
        else build_autoencoder(type(model).__name__)
    )
    with torch.no_grad():
        for name, weight in weights.items():
            dense.get_submodule(name).weight.copy_(weight)
    for got, wanted, plain in zip(small, run(twin), run(dense), strict=True):
        assert torch.isfinite(got).all()
        assert torch.equal(got, wanted)
        assert torch.equal(got, plain)


def test_is_saved_as_it_was_packed(packed: tuple[Any, dict[str, int], Path], tmp_path: Path) -> None:
    model, _, folder = packed
    type(model).from_pretrained(folder).save_pretrained(tmp_path / "again")
    name = ARCHITECTURES[type(model).__name__].weights
    assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_every_weight_matrix_but_the_image_towers_patches_is_packed(packed: tuple[Any, dict[str, int], Path]) -> None:
    model, bits, folder = packed
    others = {name for name, tensor in model.state_dict().items() if sum(size > 1 for size in tensor.shape) > 1}
    others -= {f"{name}.weight" for name in bits}
    tied = {f"{name}.weight" for name in ARCHITECTURES[type(model).__name__].tied(model)}
    assert others - tied <= {"model.visual.patch_embed.proj.weight"}
    assert inspect_folder(folder).fallbacks.keys() == others - tied
    assert all(isinstance(model.get_submodule(name), (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding)) for name in bits)
