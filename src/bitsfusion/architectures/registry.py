"""The classes of models that are packed: who builds them, which of their layers are packed, and at how many bits."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bitsfusion.architectures.unet import LayerInfo, LayerRole, layer_info, layer_role

_VAE_ENDS = re.compile(r"^((encoder|decoder)\.conv_(in|out)|(post_)?quant_conv)$")
_TEXT_ENDS = re.compile(r"(^|\.)(embeddings\.position_embedding|text_projection)$")
_TEXT_PREFIX = "text_model."

STEERING = ("transformers_weights", "auto_map", "attn_implementation", "experts_implementation", "fusion_config")
"""Keys (and all with a leading _) by which a config.json makes transformers take other files or code than its own."""


@dataclass(frozen=True)
class Architecture:
    """One class of model.

    Fields:
        name: of the class in its library.
        noun: what messages call such a model.
        library: whose `from_pretrained` loads it.
        weights: the name of its one safetensors file.
        layers: the kinds of layers that are packed, all of them: none is kept dense.
        role: the part that a layer of a name plays.
        timed: whether it has layers of the time step.
    """

    name: str
    noun: str
    library: Literal["diffusers", "transformers"]
    weights: str
    layers: tuple[type[nn.Module], ...]
    role: Callable[[str], LayerRole]
    timed: bool = False

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The dense model of a config.json, on meta, for inference; raises whatever the class meets."""
        made: Any = getattr(importlib.import_module(self.library), self.name)
        with torch.device("meta"):
            if self.library == "diffusers":
                model: nn.Module = made.from_config(dict(config))
            else:
                model = made(made.config_class.from_dict(without_steering(config)))
        return model.eval()

    def stored_names(self, model: Any, stored: Mapping[str, object]) -> dict[str, str]:
        """The names in files of older versions of the library: parameter of `model` -> its name in `stored`.

        Names of `stored` that are of no parameter stand for themselves.
        """
        if self.library == "diffusers":  # old attention blocks have other names; diffusers says which stand for which
            names: dict[str, str] = model._fix_state_dict_keys_on_load({name: name for name in stored})
            return names
        known = model.state_dict().keys()
        return {_text_name(name, known): name for name in stored}


def _text_name(name: str, known: Any) -> str:
    """transformers 5 has left the prefix out of CLIPTextModel; published files have it."""
    ways = (name, name.removeprefix(_TEXT_PREFIX), _TEXT_PREFIX + name)
    return next((way for way in ways if way in known), name)


def without_steering(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers config with nothing in it but the model."""
    return {key: value for key, value in config.items() if key not in STEERING and not key.startswith("_")}


def vae_role(name: str) -> LayerRole:
    """First and last convolutions and the two small ones at the latents are kept at 8 bits, as in the UNet."""
    return LayerRole.FIRST_LAST if _VAE_ENDS.search(name) else LayerRole.QUANTIZED


def text_role(name: str) -> LayerRole:
    """Position embedding and final projection, both small, are kept at 8 bits."""
    return LayerRole.FIRST_LAST if _TEXT_ENDS.search(name) else LayerRole.QUANTIZED


_DIFFUSERS_FILE, _TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"
_CONVOLUTIONAL = (nn.Linear, nn.Conv2d)
_TEXT = (nn.Linear, nn.Embedding)

UNET = Architecture(
    "UNet2DConditionModel", "UNet", "diffusers", _DIFFUSERS_FILE, _CONVOLUTIONAL, layer_role, timed=True
)
VAE = Architecture("AutoencoderKL", "VAE", "diffusers", _DIFFUSERS_FILE, _CONVOLUTIONAL, vae_role)
TEXT_ENCODERS = tuple(
    Architecture(name, "text encoder", "transformers", _TRANSFORMERS_FILE, _TEXT, text_role)
    for name in ("CLIPTextModel", "CLIPTextModelWithProjection")
)

ARCHITECTURES: Mapping[str, Architecture] = {made.name: made for made in (UNET, VAE, *TEXT_ENCODERS)}
"""By class name: the only classes that a reader builds."""


def class_name(config: Mapping[str, Any]) -> Any:
    """The class that a config.json names, in the way of either library; None if it names none."""
    if "_class_name" in config:
        return config["_class_name"]
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and len(named) == 1 else None


def architecture_of(model: nn.Module) -> Architecture | None:
    """Of a model in memory, a subclass included."""
    names = (kind.__name__ for kind in type(model).__mro__)
    return next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)


def packed_modules(model: nn.Module, architecture: Architecture) -> dict[str, Any]:
    """The layers that are packed, or are to be, by name in module order; on meta too."""
    return {name: module for name, module in model.named_modules() if isinstance(module, architecture.layers)}


def model_layers(model: nn.Module, architecture: Architecture) -> dict[str, LayerInfo]:
    """Name, role and shape of the same."""
    modules = packed_modules(model, architecture)
    return {name: layer_info(name, module, architecture.role(name)) for name, module in modules.items()}
