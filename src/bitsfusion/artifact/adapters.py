"""Adapters on a packed model: checked against its layers before anything changes, and added whole or not at all."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bitsfusion.diffusion.time_features.cache import CachedLayer
from bitsfusion.errors import InputError

ADDING = ("load_lora_adapter", "add_adapter", "load_adapter")
"""The methods of a model that add an adapter, diffusers' and transformers'."""

_PART = re.compile(r"(?P<layer>.+?)\.(?P<part>lora_[A-Z]|lora_magnitude_vector|lokr_\w+)(\.|$)")
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


class Guarded:
    """A method of a model that adds an adapter, on the model itself: whole, or not at all.

    Holds the model weakly; a copy of the model has one of its own.

    Fields:
        packed: its packed layers by name, for diffusers puts wider dense ones in their place before it adds a control
            adapter of FLUX.
    """

    def __init__(self, method: str, model: nn.Module, packed: Mapping[str, Any]) -> None:
        self.method, self.model, self.packed = method, weakref.ref(model), packed

    def __getstate__(self) -> dict[str, Any]:
        return {"method": self.method, "model": self.model(), "packed": self.packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["method"], state["model"], state["packed"])  # type: ignore[misc]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.model()
        _refuse_widened(model, self.packed)
        if self.method == "load_lora_adapter":
            _check_parts(model, args[0] if args else next(iter(kwargs.values())), kwargs)
        elif self.method == "load_adapter":
            check_adapter(model, kwargs.get("adapter_state_dict") or {}, None)
        else:
            _check_targets(model, args[0] if args else kwargs.get("adapter_config"))
        before = _Adapters(model)
        try:
            return getattr(type(model), self.method)(model, *args, **kwargs)
        except Exception:
            before.restore(model)
            raise


def _refuse_widened(model: Any, packed: Mapping[str, Any]) -> None:
    """Puts packed layers back where diffusers put wider dense ones for an adapter.

    Raises:
        InputError: there were any; names the first.
    """
    widened = {}
    for name, layer in packed.items():
        parent, _, child = name.rpartition(".")
        holder: Any = model.get_submodule(parent)
        if hasattr(getattr(holder, child), "base_layer"):
            holder, child = getattr(holder, child), "base_layer"
        if type(found := getattr(holder, child)) is nn.Linear:
            widened[name] = (found.weight, layer)
            setattr(holder, child, layer)
    if not widened:
        return
    if "x_embedder" in widened:
        model.config.in_channels = packed["x_embedder"].in_features
    model._overwritten_params = None
    name, (weight, layer) = next(iter(widened.items()))
    raise InputError(
        f"{name}: got an adapter for a weight {list(weight.shape)}, wanted one for "
        f"{[layer.out_features, layer.in_features]}: packed bits cannot widen for a control adapter; call "
        "dequantize() on the model first"
    )


def _check_parts(model: Any, source: Any, options: Mapping[str, Any]) -> None:
    """Checks an adapter's tensors for the model, and those for the text encoders of the same pipeline."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        path = path / (options.get("weight_name") or "pytorch_lora_weights.safetensors") if path.is_dir() else path
        if path.suffix != ".safetensors" or not path.is_file():
            return  # a hub id, or nothing: diffusers says which
        from safetensors.torch import load_file

        source = load_file(path)
    check_adapter(model, source, options.get("prefix", "transformer"))
    pipeline = options.get("_pipeline")
    for name, part in getattr(pipeline, "components", {}).items():
        if isinstance(part, nn.Module) and part is not model:
            check_adapter(part, source, name)


def check_adapter(model: nn.Module, state: Mapping[str, Any], prefix: str | None) -> None:
    """Checks whether every layer that an adapter's tensors name is there and has the shape that they ask for.

    Args:
        model: packed or dense.
        state: names and tensors, LoRA's or LoKr's, in the names of diffusers or PEFT.
        prefix: what the names for this model begin with; None for nothing.

    Raises:
        InputError: names the layer.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in _named(model, state, prefix).items():
        if (found := _PART.match(key)) is not None:
            layers.setdefault(found["layer"], {})[found["part"]] = value
    modules = dict(model.named_modules())
    content = getattr(getattr(model, "hf_quantizer", None), "content", None)
    for layer, parts in layers.items():
        if layer in getattr(content, "removed", ()):
            raise InputError(f"{layer}: {_CACHED}")
        module = modules.get(layer)
        kind = type(model).__name__ if module is None else type(module).__name__
        module = getattr(module, "base_layer", module)
        if not isinstance(module, _LAYERS):
            got = f"layer that the {kind} does not have" if module is None else kind
            raise InputError(
                f"{layer}: got an adapter for a {got}, wanted one for its linear layers and convolutions: "
                "it belongs to another model"
            )
        _check_shapes(layer, module, parts)


def _named(model: nn.Module, state: Mapping[str, Any], prefix: str | None) -> Mapping[str, Tensor]:
    """The tensors for one model in PEFT's names, as diffusers makes them."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    start = f"{prefix}." if prefix else ""
    found = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    if not found or "lora_controlnet" in found:
        return {}
    if prefix and not hasattr(model, "load_lora_adapter"):  # transformers' text encoders
        with contextlib.suppress(ValueError):  # they are in PEFT's names already
            found = convert_state_dict_to_peft(convert_state_dict_to_diffusers(found))
    elif not any("lora_A" in key or ".lokr_" in key for key in found):
        found = convert_unet_state_dict_to_peft(found)
    if not hasattr(model, "text_model"):
        found = {key.removeprefix("text_model."): value for key, value in found.items()}
    return found


def _check_shapes(layer: str, module: Any, parts: Mapping[str, Tensor]) -> None:
    down, up = parts.get("lora_A"), parts.get("lora_B")
    if (down is None) != (up is None):
        there, lost = ("lora_A", "lora_B") if up is None else ("lora_B", "lora_A")
        raise InputError(f"{layer}: got an adapter with {there} and no {lost}, wanted both: its file is cut")
    if down is None or up is None or isinstance(module, nn.Embedding) or getattr(module, "groups", 1) != 1:
        return
    shape = tuple(module.weight.shape)
    if down.shape[1:] != shape[1:] or up.shape[0] != shape[0] or up.shape[1] != down.shape[0]:
        raise InputError(
            f"{layer}: got an adapter of shapes {list(down.shape)} and {list(up.shape)}, wanted ones for a weight "
            f"{list(shape)}: it belongs to another model"
        )


def _check_targets(model: nn.Module, config: Any) -> None:
    """Checks whether an adapter's config names layers, and none that cannot take an adapter."""
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = getattr(config, "target_modules", None)
    if not targets or targets == "all-linear":
        return
    found = [(name, module) for name, module in _named_modules(model) if check_target_module_exists(config, name)]
    if not found:
        names = targets if isinstance(targets, str) else ", ".join(sorted(targets))
        raise InputError(f"target_modules: got {names}, wanted layers of the {type(model).__name__}: none fits")
    for name, module in found:
        if isinstance(module, CachedLayer):
            raise InputError(f"{name}: {_CACHED}")
        if not isinstance(getattr(module, "base_layer", module), _LAYERS):
            raise InputError(
                f"target_modules: got the {type(module).__name__} {name}, wanted linear layers and convolutions alone"
            )


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model without those of other adapters, under the names that the model knows them by."""
    for name, module in model.named_modules():
        if name and ".base_layer" not in name and ".lora_" not in name:
            yield name, module


_CACHED = (
    "got an adapter for a time layer that cached rows stand for, wanted none: pack with --cover any, which keeps the "
    "time layers"
)


class _Adapters:
    """The modules and adapters of a model, to be restored later."""

    def __init__(self, model: Any) -> None:
        self.modules = dict(model.named_modules())
        self.active = {
            name: (list(module.active_adapters), set(_names(module)))
            for name, module in self.modules.items()
            if hasattr(module, "base_layer")
        }
        self.config = dict(getattr(model, "peft_config", {}))
        self.loaded = getattr(model, "_hf_peft_config_loaded", False)
        self.trained = {id(parameter): parameter.requires_grad for parameter in model.parameters()}

    def restore(self, model: Any) -> None:
        for name, module in self.modules.items():
            parent, _, child = name.rpartition(".")
            if name and model.get_submodule(parent)._modules.get(child) is not module:
                model.get_submodule(parent)._modules[child] = module
        for name, (active, adapters) in self.active.items():
            module = self.modules[name]
            for adapter in _names(module) - adapters:
                module.delete_adapter(adapter)
            module.set_adapter(active)
        for parameter in model.parameters():
            parameter.requires_grad_(self.trained.get(id(parameter), False))
        if self.config:
            model.peft_config = self.config
        else:
            vars(model).pop("peft_config", None)
        model._hf_peft_config_loaded = self.loaded


def _names(module: Any) -> set[str]:
    """The adapters of one adapted layer."""
    return {key for kind in module.adapter_layer_names for key in getattr(module, kind)}
