"""An image transformer without a family of its own, through the commands: packed as generic, and said to be."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

import bitsfusion  # noqa: F401  registers the format
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import architecture_named, model_layers
from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PACKED_LAYERS
from bitsfusion.nn.replace import fake_quantize_model, fake_quantized_layers
from bitsfusion.numerics import ScaleInit
from bitsfusion.recipe.named import recipe_bits

from ..command import refusal, run
from ..tiny.generic import CLASS, build_generic, build_generic_pipeline
from ..tiny.pictures import captioned

SAYS = f"{CLASS} has no family of its own and is taken as a generic transformer"
UNTRAINED = f"got a {CLASS}, wanted one of"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The dense pipeline, and the one that `init --whole` makes of it."""
    folder = tmp_path_factory.mktemp("generic")
    build_generic_pipeline().save_pretrained(folder / "dense")
    options = ["--recipe", "uniform:2", "--whole", "--quiet"]
    assert run("init", folder / "dense", *options, "--out", folder / "packed") == 0
    return folder / "dense", folder / "packed"


def draw(pipeline: DiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt", "generator": generator}
    images: torch.Tensor = pipeline("red circle", **options).images
    return images


def test_every_linear_layer_is_packed_and_ends_lie_outside_the_blocks() -> None:
    model = build_generic()
    layers = model_layers(model)
    assert layers.keys() == {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    ends = {name for name, layer in layers.items() if layer.role is LayerRole.FIRST_LAST}
    assert {name.split(".")[0] for name in ends} == {"x_embedder", "time_caption_embed", "norm_out"}
    assert layers["layers.0.norm1.linear"].kind == "modulation"
    assert {layers[name].kind for name in ends} == {"embedding", "modulation"}  # and the output, within norm_out


def test_patterns_of_the_class_make_ends_inside_blocks() -> None:
    family = architecture_named("HunyuanDiT2DModel")
    assert family is not None
    assert "pooler" in diffusers.HunyuanDiT2DModel._skip_layerwise_casting_patterns
    assert family.role("blocks.0.pooler.linear") is LayerRole.FIRST_LAST
    assert family.role("blocks.0.norm1.linear") is LayerRole.QUANTIZED  # though `norm` is one of them
    assert family.role("blocks.0.attn1.to_q") is LayerRole.QUANTIZED


def test_only_classes_of_image_transformers_are_generic() -> None:
    for name in (
        "UNet2DModel",
        "Transformer2DModel",
        "WanTransformer3DModel",
        "FluxControlNetModel",
        "os",
        "No2DModel",
    ):
        assert architecture_named(name) is None


def test_a_mixture_of_experts_is_refused() -> None:
    with torch.device("meta"):
        model = diffusers.NucleusMoEImageTransformer2DModel(num_layers=24)
    with pytest.raises(InputError, match=r"% of its weights in linear layers"):
        model_layers(model)


def test_unpacked_weights_are_the_fake_quantized_ones(folders: tuple[Path, Path]) -> None:
    model = build_generic()
    loaded = type(model).from_pretrained(folders[1] / "transformer")
    student = copy.deepcopy(model)
    fake_quantize_model(student, recipe_bits("uniform:2", model_layers(student)), ScaleInit.COMPACT)
    wanted = fake_quantized_layers(student)
    found = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, PACKED_LAYERS)}
    assert found.keys() == wanted.keys()
    for name, layer in found.items():
        assert torch.equal(layer.weight, wanted[name].quantized_weight()), name


def test_a_pipeline_draws_as_its_dequantized_twin(folders: tuple[Path, Path]) -> None:
    small = DiffusionPipeline.from_pretrained(folders[1])
    small.set_progress_bar_config(disable=True)
    picture = draw(small)
    small.transformer.dequantize()
    assert torch.equal(draw(small), picture)
    assert not torch.equal(draw(build_generic_pipeline()), picture)


def test_commands_say_that_it_is_generic(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, packed = folders
    calibrated = ["--calibrate", "--calibration-samples", 2, "--calibration-steps", 2]
    commands = (
        ["plan", dense, "--bits", 4],
        ["init", dense, "--recipe", "uniform:2", *calibrated, "--out", tmp_path / "calibrated"],
        ["inspect", packed],
    )
    for command in commands:
        assert run(*command) == 0
        assert SAYS in capsys.readouterr().out, command
    for folder in (packed, tmp_path / "calibrated"):
        assert run("verify", folder) == 0
    assert run("generate", packed, "red circle", "--steps", 2, "--out", tmp_path / "drawn", "--quiet") == 0
    config = json.loads((packed / "transformer" / "config.json").read_text())
    assert any(SAYS in note for note in config["quantization_config"]["provenance"]["notes"])


def test_what_needs_its_conditioning_ends_in_one_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, packed = folders
    pictures = captioned(tmp_path / "pictures")
    data = ["--data", pictures, "--resolution", 16, "--samples", 2]
    capsys.readouterr()
    assert UNTRAINED in refusal(capsys, "analyze", dense, *data, "--out", tmp_path / "table.json")
    assert UNTRAINED in refusal(capsys, "timesteps", dense, packed, *data, "--points", 2, "--out", tmp_path / "c.json")
    config = {
        "model": str(dense),
        "data": {"kind": "imagefolder", "train_data_dir": str(pictures), "resolution": 16},
        "recipe": "uniform:2",
        "training": {"stage": 1, "train_batch_size": 2, "max_train_steps": 2, "learning_rate": 1e-4},
    }
    (tmp_path / "stage1.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert UNTRAINED in refusal(capsys, "train", tmp_path / "stage1.yaml", "--out", tmp_path / "s", "--quiet")
