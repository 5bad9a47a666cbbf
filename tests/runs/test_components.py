"""`init` beyond the UNet: which bits every component gets, and what is said where that cannot be."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

import bitsfusion  # noqa: F401  registers with diffusers and transformers
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import ARCHITECTURES, TEXT_ENCODERS, VAES, model_layers
from bitsfusion.artifact.inspect import folder_sizes, inspect_pipeline
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.embedded import PIPELINE_FOLDER
from bitsfusion.errors import InputError
from bitsfusion.numerics import ScaleInit
from bitsfusion.packing.accounting import average_bits
from bitsfusion.pipelines.folder import read_folder
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.pipelines.model_folder import open_model
from bitsfusion.progress import ProgressSink
from bitsfusion.recipe.schema import Recipe, write_recipe
from bitsfusion.runs.components import WHOLE, OtherBits, other_parts
from bitsfusion.runs.packing import init_pipeline

from ..command import run

TOKENS = "embeddings.token_embedding"
ENDS = {
    "vae": {f"{half}.conv_{end}" for half in ("encoder", "decoder") for end in ("in", "out")}
    | {"quant_conv", "post_quant_conv"},
    "text_encoder": {"embeddings.position_embedding"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, PackedConfig]]:
    folder = tmp_path_factory.mktemp("whole") / "packed"
    return folder, init_pipeline("embedded", folder, recipe="uniform:3", others=WHOLE)


def chosen(others: OtherBits) -> dict[str, dict[str, int]]:
    """Component -> layer -> bits, of the embedded model; nothing is packed."""
    made = other_parts(read_folder(PIPELINE_FOLDER), others, ScaleInit.MINMAX, ProgressSink())
    return {name: {layer: parts.layer(layer)[0] for layer in parts.kept} for name, (parts, _) in made.items()}


def test_every_layer_of_the_whole_pipeline(whole: tuple[Path, dict[str, PackedConfig]]) -> None:
    folder, configs = whole
    verify_folder(folder)
    pipeline = load_pipeline("embedded")
    assert list(configs) == ["unet", "text_encoder", "vae"] and WHOLE.text_encoder and WHOLE.vae
    for name, bits in (("text_encoder", int(WHOLE.text_encoder)), ("vae", int(WHOLE.vae))):
        model = pipeline.components[name]
        layers = model_layers(model, ARCHITECTURES[type(model).__name__])
        wanted = {layer: 8 if layer in ENDS[name] else bits for layer in layers}
        if name == "text_encoder":
            wanted[TOKENS] = WHOLE.token_embedding
        assert configs[name].bits == wanted
        assert sum(configs[name].weights.values()) == sum(p.numel() for p in model.parameters() if p.dim() > 1)
    loaded = StableDiffusionPipeline.from_pretrained(folder)
    assert {name: getattr(loaded, name).hf_quantizer.content for name in configs} == configs


def test_some_components_alone() -> None:
    assert list(chosen(OtherBits(vae="5"))) == ["vae"]
    bits = chosen(OtherBits(text_encoder="uniform:3", token_embedding=7))
    assert list(bits) == ["text_encoder"] and bits["text_encoder"][TOKENS] == 7
    assert {bits["text_encoder"][name] for name in bits["text_encoder"]} == {3, 7, 8}


def test_an_average_is_spread_by_the_weights() -> None:
    bits = chosen(OtherBits(text_encoder="4.5", vae="4.5", token_embedding=6))
    assert bits["text_encoder"].pop(TOKENS) == 6
    for name, architecture in (("text_encoder", TEXT_ENCODERS[0]), ("vae", VAES[0])):
        layers = model_layers(open_model(PIPELINE_FOLDER / name, architecture).skeleton, architecture)
        weights = {layer: layers[layer].numel for layer in bits[name]}
        counted = sum(math.log2(2 ** bits[name][layer] + 1) * weights[layer] for layer in weights)
        assert 4.45 < counted / sum(weights.values()) <= 4.5
        assert len(set(bits[name].values())) > 2


def test_a_recipe_file(tmp_path: Path) -> None:
    layers = model_layers(open_model(PIPELINE_FOLDER / "vae", VAES[0]).skeleton, VAES[0])
    weights = {name: layer.numel for name, layer in layers.items()}
    bits = {
        name: 8 if layer.role is LayerRole.FIRST_LAST else 2 + i % 6 for i, (name, layer) in enumerate(layers.items())
    }
    made = Recipe(
        model="embedded",
        source_sha256=None,
        strategy="by hand",
        target_bits=None,
        average_bits=average_bits(weights, bits, 0),
        feature_values=0,
        bits=bits,
        removed=[],
        weights=weights,
        provenance={},
    )
    write_recipe(tmp_path / "vae.json", made)
    assert chosen(OtherBits(vae=str(tmp_path / "vae.json")))["vae"] == bits
    with pytest.raises(InputError, match=r"^text_encoder: .*vae\.json: got layers that the model does not have"):
        chosen(OtherBits(text_encoder=str(tmp_path / "vae.json")))


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"vae": "9"}, r"^vae: recipe: got 'uniform:9', wanted uniform:N"),
        ({"text_encoder": "four"}, r"^text_encoder: recipe: got 'four', wanted a recipe file"),
        ({"vae": "99.5"}, r"^vae: target: got 99\.5 bits on average"),
        ({"token_embedding": 0}, "^token embedding: got 0 bits"),
    ],
)
def test_bits_that_there_are_not(others: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        chosen(OtherBits(**others))  # type: ignore[arg-type]


def test_components_that_there_are_not(tmp_path: Path) -> None:
    """An error where they were asked for by name, and dense where the whole was."""
    shutil.copytree(PIPELINE_FOLDER, tmp_path / "x")
    index = json.loads((tmp_path / "x" / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (tmp_path / "x" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="got bits for a VAE, wanted a pipeline that has one"):
        other_parts(read_folder(tmp_path / "x"), OtherBits(vae="4"), ScaleInit.EXACT, ProgressSink())
    assert list(other_parts(read_folder(tmp_path / "x"), WHOLE, ScaleInit.EXACT, ProgressSink())) == ["text_encoder"]


def test_a_tensor_that_is_missing_names_component_and_tensor(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(PIPELINE_FOLDER, tmp_path / "x")
    file = tmp_path / "x" / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    del tensors["final_layer_norm.bias"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"^text_encoder: final_layer_norm\.bias: got no such tensor"):
        other_parts(read_folder(tmp_path / "x"), WHOLE, ScaleInit.EXACT, ProgressSink())


def test_commands(whole: tuple[Path, dict[str, PackedConfig]], capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` says what every part of the pipeline takes; `verify` looks at every packed one."""
    folder, configs = whole
    assert run("inspect", folder, "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    sizes = {part.name: part.bytes_on_disk for part in inspect_pipeline(folder)}
    assert seen["average_bits"] == configs["unet"].average_bits
    assert seen["pipeline"]["bytes_on_disk"] == sum(sizes.values()) == sum(folder_sizes(folder).values())
    parts = seen["pipeline"]["components"]
    assert {name: part["bytes_on_disk"] for name, part in parts.items()} == sizes
    assert parts["vae"]["packed"]["average_bits"] == configs["vae"].average_bits
    assert parts["tokenizer"] == {"form": "no weights", "bytes_on_disk": sizes["tokenizer"], "packed": None}
    assert run("inspect", folder) == 0
    printed = capsys.readouterr().out
    assert "components kept dense       none" in printed and f"{sum(sizes.values()):,}" in printed
