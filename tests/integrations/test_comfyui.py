"""The custom node of ComfyUI, in a stand-in for the two modules of ComfyUI that it calls.

The stand-in keeps to what ComfyUI's public sources show: `folder_paths.get_folder_paths(name)` lists folders, and
`comfy.sd.load_diffusion_model_state_dict(sd, model_options)` takes the prefix of checkpoints off names that have it,
tells a UNet by `input_blocks.0.0.weight` and Stable Diffusion 3 by `joint_blocks.0.context_block.attn.qkv.weight`, and
returns None for what it does not know. Whether the layout is right is asked of diffusers' own converters.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.runs.packing import init_pipeline

from ..tiny.kinds import build_sd
from ..tiny.transformers import build_sd3_pipeline, build_transformer

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
PREFIX = "model.diffusion_model."
KNOWN = ("input_blocks.0.0.weight", "joint_blocks.0.context_block.attn.qkv.weight")


class Patcher:
    """What is left of a ModelPatcher: the weights that a model was built from."""

    def __init__(self, weights: dict[str, Tensor], options: dict[str, Any]) -> None:
        self.weights, self.options = weights, options


def load_diffusion_model_state_dict(sd: dict[str, Tensor], model_options: dict[str, Any]) -> Patcher | None:
    own = {name.removeprefix(PREFIX): tensor for name, tensor in sd.items() if name.startswith(PREFIX)}
    weights = own if len(own) > 5 else sd
    assert {tensor.dtype for tensor in weights.values()} == {model_options["dtype"]}
    return Patcher(weights, model_options) if any(name in weights for name in KNOWN) else None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's models/diffusers: two packed pipelines, a packed denoiser alone, and one that is not packed."""
    made = tmp_path_factory.mktemp("models")
    build_sd().save_pretrained(made / "dense" / "sd")
    build_sd3_pipeline().save_pretrained(made / "dense" / "sd3")
    build_transformer("PixArtTransformer2DModel").save_pretrained(made / "dense" / "pixart")
    for name, cover in (("sd", None), ("sd3", "basis"), ("pixart", "basis")):
        init_pipeline(str(made / "dense" / name), made / "packed" / name, recipe="uniform:3", samplers=cover)
    return made


@pytest.fixture
def node(models: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class, imported as ComfyUI imports a folder of custom_nodes."""
    comfy, sd, folder_paths = (ModuleType(name) for name in ("comfy", "comfy.sd", "folder_paths"))
    places = {"diffusers": [str(models / "packed"), str(models / "dense"), str(models / "none")]}
    vars(sd)["load_diffusion_model_state_dict"] = load_diffusion_model_state_dict
    vars(folder_paths)["get_folder_paths"] = places.__getitem__
    vars(comfy)["sd"] = sd
    for module in (comfy, sd, folder_paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("custom_node", FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_node", package)
    spec.loader.exec_module(package)
    nodes = sys.modules["custom_node.nodes"]
    monkeypatch.delitem(sys.modules, "custom_node.nodes")
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    (kind,) = package.NODE_CLASS_MAPPINGS.values()
    assert kind is vars(nodes)["BitsFusionLoader"]
    return kind


def load(node: Any, folder: str) -> Any:
    """As the program calls a node: by its FUNCTION, with a value for every input."""
    inputs = node.INPUT_TYPES()["required"]
    assert folder in inputs["folder"][0] and "float32" in inputs["dtype"][0]
    outputs = getattr(node(), node.FUNCTION)(folder=folder, dtype="float32")
    assert node.RETURN_TYPES == ("MODEL",) and len(outputs) == 1
    return outputs[0]


def unpacked(model: Any) -> dict[str, Tensor]:
    model.dequantize()
    return dict(model.state_dict())


def test_what_is_listed(node: Any) -> None:
    assert node.INPUT_TYPES()["required"]["folder"] == (["pixart", "sd", "sd3"],)


def test_a_unet(node: Any, models: Path) -> None:
    model: Any = UNet2DConditionModel.from_pretrained(models / "packed/sd/unet")
    weights = {f"{PREFIX}{name}": tensor for name, tensor in load(node, "sd").weights.items()}
    back = converters.convert_ldm_unet_checkpoint(weights, model.config)
    wanted = unpacked(model)
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in wanted.items())


def test_a_transformer(node: Any, models: Path) -> None:
    back = converters.convert_sd3_transformer_checkpoint_to_diffusers(load(node, "sd3").weights)
    wanted = unpacked(SD3Transformer2DModel.from_pretrained(models / "packed/sd3/transformer"))
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in wanted.items())


def test_refusals(node: Any, models: Path) -> None:
    with pytest.raises(ValueError, match="got 'other', wanted one of pixart, sd, sd3"):
        node().load("other", "float16")
    with pytest.raises(InputError, match="got a PixArtTransformer2DModel, wanted one of"):
        node().load("pixart", "float16")
