from __future__ import annotations

import json

import pytest

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.errors import InputError
from bitsfusion.packing.accounting import average_bits
from bitsfusion.recipe.schema import Recipe, check_fits, read_recipe, write_recipe

from ..tiny.unet import build_unet


@pytest.fixture(scope="module")
def layers():
    return model_layers(build_unet())


@pytest.fixture
def content(layers):
    removed = [name for name, info in layers.items() if info.role is LayerRole.TIME]
    weights = {name: info.numel for name, info in layers.items()}
    bits = {name: 8 if name in ("conv_in", "conv_out") else 2 for name in layers if name not in removed}
    return {
        "schema_version": 1,
        "model": "tiny",
        "source_sha256": None,
        "strategy": "uniform",
        "target_bits": None,
        "average_bits": average_bits(weights, bits, 100),
        "feature_values": 100,
        "bits": bits,
        "removed": removed,
        "weights": weights,
        "provenance": {},
    }


def read(content, tmp_path) -> Recipe:
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    return read_recipe(tmp_path / "recipe.json")


def test_round_trip(content, layers, tmp_path):
    recipe = read(content, tmp_path)
    write_recipe(tmp_path / "copy.json", recipe)
    assert json.loads((tmp_path / "copy.json").read_text()) == content
    assert read_recipe(tmp_path / "copy.json") == recipe
    assert read_recipe(tmp_path / "copy.json").sha256() == recipe.sha256()
    check_fits(recipe, layers)


@pytest.mark.parametrize("bits", [0, 9, 2.5, "2", True, None])
def test_refuses_bits(content, tmp_path, bits):
    name = "mid_block.resnets.0.conv1"
    content["bits"][name] = bits
    with pytest.raises(InputError, match=name) as caught:
        read(content, tmp_path)
    assert "\n" not in str(caught.value)
    assert "recipe.json" in str(caught.value) and repr(bits) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(colour="red"), "colour: Extra inputs"),
        (lambda c: c.update(schema_version=2), "schema_version: Input should be 1, got 2"),
        (lambda c: c.pop("bits"), "bits: Field required"),
        (lambda c: c.update(average_bits=1.5), r"average_bits 1.5, wanted \d"),
        (lambda c: c["bits"].update(ghost=2), "weights does not know: ghost"),
        (lambda c: c["bits"].pop("conv_in"), "neither bits nor removal for: conv_in"),
        (lambda c: c["removed"].append("conv_in"), "got bits for removed layers: conv_in"),
    ],
    ids=["unknown field", "version", "no bits", "average", "unknown layer", "left out", "both"],
)
def test_refuses_contradictions(content, tmp_path, change, message):
    change(content)
    with pytest.raises(InputError, match=message) as caught:
        read(content, tmp_path)
    assert "\n" not in str(caught.value)


def renamed(content, old, new):
    for part in (content["bits"], content["weights"]):
        part[new] = part.pop(old)
    return Recipe.model_validate(content)


def test_fit_names_unknown_and_missing_layers(content, layers):
    with pytest.raises(InputError, match=r"does not have: ghost$"):
        check_fits(renamed(content, "conv_in", "ghost"), layers)
    fewer = {name: info for index, (name, info) in enumerate(layers.items()) if index >= 12}
    with pytest.raises(InputError, match=r"does not have: (\S+, ){4}\S+ and \d more$"):
        check_fits(Recipe.model_validate(content), fewer)


def test_fit_names_layers_left_out(content, layers):
    for part in (content["bits"], content["weights"]):
        part.pop("conv_out")
    content["average_bits"] = average_bits(content["weights"], content["bits"], 100)
    with pytest.raises(InputError, match="leaves out layers of the model: conv_out"):
        check_fits(Recipe.model_validate(content), layers)


def test_fit_refuses_removal_of_what_is_needed_and_other_shapes(content, layers):
    content["removed"].append("conv_in")
    content["bits"].pop("conv_in")
    content["average_bits"] = average_bits(content["weights"], content["bits"], 100)
    with pytest.raises(InputError, match="no time layers: conv_in"):
        check_fits(Recipe.model_validate(content), layers)


def test_fit_refuses_other_sizes(content, layers):
    content["weights"]["mid_block.resnets.0.conv1"] += 9
    content["average_bits"] = average_bits(content["weights"], content["bits"], 100)
    with pytest.raises(InputError, match=r"number of weights than the model has in: mid_block\.resnets\.0\.conv1$"):
        check_fits(Recipe.model_validate(content), layers)


def test_fit_accepts_what_fine_tunes_change(content, layers):
    content["weights"]["conv_in"] += 360  # more input channels
    content["weights"].pop("time_embedding.linear_1")  # the fine-tune has one that the base has not
    content["removed"].remove("time_embedding.linear_1")
    content["weights"]["time_embedding.cond_proj"] = 5  # and lacks one
    content["removed"].append("time_embedding.cond_proj")
    content["average_bits"] = average_bits(content["weights"], content["bits"], 100)
    check_fits(Recipe.model_validate(content), layers)
