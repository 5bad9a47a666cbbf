"""The families that are known: by class name, of a model in memory, of a config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitsfusion.architectures.base import Architecture, Denoiser
from bitsfusion.architectures.generic import generic_transformer
from bitsfusion.architectures.latents import Latents
from bitsfusion.architectures.layers import LayerInfo, LayerRole
from bitsfusion.architectures.text import TEXT_ENCODERS
from bitsfusion.architectures.transformer import TRANSFORMERS
from bitsfusion.architectures.unet import UNET
from bitsfusion.architectures.vae import VAES, Autoencoder
from bitsfusion.errors import InputError

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: Mapping[str, Architecture] = {made.name: made for made in (UNET, *TRANSFORMERS, *VAES, *TEXT_ENCODERS)}
"""By class name: those with a family of their own."""

DENOISERS: Mapping[str, Denoiser] = {name: made for name, made in ARCHITECTURES.items() if isinstance(made, Denoiser)}
"""Those that a pipeline calls once a step."""

DENOISER_COMPONENTS = tuple(dict.fromkeys(made.component for made in DENOISERS.values()))
"""What pipelines call them: unet, transformer."""


DENOISER_KINDS = f"a {UNET.name} or an image transformer of diffusers"
"""What is packed as a denoiser, in words."""

_PURPOSES = (
    (re.compile(r"ControlNet|Adapter"), "which steers another model"),
    (re.compile(r"3D(Condition)?Model|SpatioTemporal|Video|MotionModel"), "which makes videos"),
    (re.compile(r"1DModel|Audio|Music"), "which makes sound"),
)


def described(name: str) -> str:
    """A class that is not packed as a denoiser, with what it is for where its name tells."""
    purpose = next((words for pattern, words in _PURPOSES if pattern.search(name)), None)
    return name if purpose is None else f"{name}, {purpose}"


def architecture_named(name: str) -> Architecture | None:
    """The family of a class; the generic one for an image transformer of diffusers that has none of its own.

    Readers build no class for which this is None.
    """
    return ARCHITECTURES.get(name) or generic_transformer(name)


def class_name(config: Mapping[str, Any]) -> Any:
    """The class that a config.json names, in the way of either library; None if it names none."""
    if "_class_name" in config:
        return config["_class_name"]
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and len(named) == 1 else None


def architecture_of(model: nn.Module) -> Architecture | None:
    """The family of a model in memory, a subclass's or a wrapped one's included; None if it is not known."""
    model = getattr(model, "module", model)  # as DistributedDataParallel wraps it
    found = (architecture_named(kind.__name__) for kind in type(model).__mro__)
    return next((each for each in found if each is not None), None)


def latents_of(vae: nn.Module) -> Latents:
    """What an autoencoder makes of images.

    Raises:
        InputError: it is none that is known.
    """
    found = architecture_of(vae)
    if not isinstance(found, Autoencoder):
        wanted = ", ".join(made.name for made in VAES)
        raise InputError(f"vae: got a {type(vae).__name__}, wanted one of {wanted}")
    return found.latents


def denoiser_of(model: nn.Module) -> Denoiser:
    """The same of a model that is called once a step.

    Raises:
        InputError: it is none that is known.
    """
    found = architecture_of(model)
    if not isinstance(found, Denoiser):
        raise InputError(f"model: got a {type(model).__name__}, wanted {DENOISER_KINDS}")
    return found


def denoiser_called(config: Mapping[str, Any]) -> Denoiser:
    """The family that a config.json names; a UNet where it names none.

    Raises:
        InputError: no denoiser that is known.
    """
    name = config.get("_class_name", UNET.name)
    found = architecture_named(str(name))
    if not isinstance(found, Denoiser):
        raise InputError(f"config.json: got _class_name {name!r}, wanted one of {', '.join(DENOISERS)}")
    return found


def model_layers(model: nn.Module, architecture: Architecture | None = None) -> dict[str, LayerInfo]:
    """Name, role and shape of every layer that is packed, in module order; on meta too.

    Args:
        architecture: the model's; found by its class where not given.

    Raises:
        InputError: no class that is known.
    """
    return (architecture or denoiser_of(model)).layer_infos(model)


def layer_role(name: str) -> LayerRole:
    """The part that a layer of this name plays in a UNet; no other model has names like those of its time layers."""
    return UNET.role(name)


def layers_to_assign(model: nn.Module) -> dict[str, LayerInfo]:
    """The layers that a recipe chooses bits for: all but ends, time and conditioning layers."""
    return {name: layer for name, layer in model_layers(model).items() if layer.role is LayerRole.QUANTIZED}
