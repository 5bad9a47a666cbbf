"""Refuses operations of torch and diffusers that packed bits do not support, before anything changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.artifact.adapters import ADDING, Guarded
from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PACKED_LAYERS

_CACHED = ("time_proj", "time_embedding")
_WAY = "call dequantize() on the model first"


def guard(model: nn.Module) -> None:
    """Makes a loaded packed model refuse, with an InputError that names the way, what would lose or spread its bits.

    - `load_state_dict` of anything but its own bits, on the model or a part of it;
    - `state_dict` of a part, which is how ControlNet, AnimateDiff and the like copy a UNet's weights;
    - training as a whole: its parameters are frozen, and a forward that would give them gradients is refused;
    - `fuse_lora` and `fuse_qkv_projections`, which would put dense weights beside the packed ones;
    - an adapter for layers that are not there or of other shapes (`adapters`).

    Adapters on packed layers, gradients to inputs and copies of the model work as before.
    """
    model.requires_grad_(False)
    model.register_load_state_dict_pre_hook(_check_load)
    model.register_forward_pre_hook(_check_training, with_kwargs=True)
    model._register_state_dict_hook(_answer_for_weights)
    for part in _parts(model):
        part.register_load_state_dict_pre_hook(_check_direct_load)
        part.register_state_dict_pre_hook(_check_state)
    for name, refuse in _REFUSED.items():
        if hasattr(model, name):
            setattr(model, name, refuse)
    packed = {name: layer for name, layer in model.named_modules() if isinstance(layer, PACKED_LAYERS)}
    for name in ADDING:
        if hasattr(model, name):
            setattr(model, name, Guarded(name, model, packed))


def unguard(model: nn.Module) -> None:
    """Undoes `guard`: the model is an ordinary one, and trains. Access to removed time layers stays refused."""
    for part in model.modules():
        for hooks in (
            part._forward_pre_hooks,
            part._state_dict_hooks,
            part._state_dict_pre_hooks,
            part._load_state_dict_pre_hooks,
        ):
            for key, hook in list(hooks.items()):
                if getattr(hook, "hook", hook) in _HOOKS:
                    del hooks[key]
                    part._forward_pre_hooks_with_kwargs.pop(key, None)
    for name in (*_REFUSED, *ADDING):
        vars(model).pop(name, None)
    model.requires_grad_(True)


def guard_cached(model: nn.Module) -> None:
    """Refuses access to removed time layers on a model made dense again: their weights are lost."""
    model.register_load_state_dict_pre_hook(_check_cached_load)
    for name in _CACHED:
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            part.register_state_dict_pre_hook(_check_cached_state)


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules below the model that are or hold packed layers, or that replace time layers."""
    for name, module in model.named_modules():
        if name and (name in _CACHED or any(isinstance(inner, PACKED_LAYERS) for inner in module.modules())):
            yield module


def _check_load(model: nn.Module, state: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
    for name, layer in model.named_modules():
        if not isinstance(layer, PACKED_LAYERS):
            continue
        start = f"{prefix}{name}." if name else prefix
        dense = start.replace(".base_layer.", ".")
        if f"{start}weight" in state or f"{dense}weight" in state:
            raise InputError(f"{name or 'load_state_dict'}: got a dense weight for a packed layer, wanted none: {_WAY}")
        packed = state.get(f"{start}packed")
        if packed is None:
            continue  # part of a model, such as an adapter alone; of a whole one torch names what is missing
        now = layer.packed
        if packed.dtype != torch.uint8 or packed.shape != now.shape or not _equal(packed, now):
            raise InputError(
                f"{name or 'load_state_dict'}: got other bits than were loaded ({packed.dtype} {list(packed.shape)}), "
                f"wanted those: load another packed model from its folder; to average or change weights, {_WAY}"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two buffers are the same; what is offloaded is taken on trust."""
    return one.is_meta or other.is_meta or torch.equal(one.to(other.device), other)


def _check_direct_load(part: nn.Module, state: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
    if not prefix:
        _check_load(part, state, prefix, *rest)


def _check_state(part: nn.Module, prefix: str, keep_vars: bool) -> None:
    if not prefix:
        raise InputError(
            f"state_dict: got a part of a packed model ({type(part).__name__}), wanted the model as a whole: to copy "
            f"its weights into a model of another class, {_WAY} (with time layers cached, pack with --cover any)"
        )


class _StateDict(OrderedDict[str, Tensor]):
    """A packed model's state that is asked for the weight of a packed layer, as diffusers' FLUX adapters do, unpacks
    it. It holds and lists packed bits alone, and pickles as any state does."""

    model: nn.Module

    def __missing__(self, key: str) -> Tensor:
        name, _, kind = key.rpartition(".")
        for found, layer in self.model.named_modules():
            if found == name and kind == "weight" and isinstance(layer, PACKED_LAYERS):
                return layer.weight
        raise KeyError(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"_metadata": getattr(self, "_metadata", None)}, None, iter(self.items())


def _answer_for_weights(model: nn.Module, state: Any, prefix: str, metadata: Any) -> Any:
    if prefix:
        return None
    made = _StateDict(state)
    made.model, made._metadata = model, getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    return made


def _check_training(model: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    way = "add an adapter and train that, or " + _WAY
    for name, layer in model.named_modules():
        bias = getattr(layer, "bias", None) if isinstance(layer, PACKED_LAYERS) else None
        if bias is not None and bias.requires_grad:
            raise InputError(
                f"{name}: got a bias that asks for gradients, beside packed weights that cannot have any: "
                f"requires_grad_(False), then {way}"
            )
    if model.training:
        inputs = (value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
        if not any(tensor.requires_grad for tensor in (*inputs, *model.parameters())):
            raise InputError(f"train: got a packed model in training mode and nothing in it to train: {way}, or eval()")


def _check_cached_load(model: nn.Module, state: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
    for name in state:
        if name.startswith(f"{prefix}time_embedding.") or ".time_emb_proj." in name:
            raise InputError(f"{name}: got a weight of a time layer that cached rows stand for: {_PACK}")


def _check_cached_state(part: nn.Module, prefix: str, keep_vars: bool) -> None:
    if not prefix:
        raise InputError(f"state_dict: got time layers that cached rows stand for ({type(part).__name__}): {_PACK}")


_PACK = "wanted a model with time layers: pack it with --cover any, then dequantize()"
_HOOKS = (_check_load, _check_direct_load, _check_state, _check_training, _answer_for_weights)


def _refuse(name: str, reason: str, *args: Any, **kwargs: Any) -> None:
    """Stands in for a method of the model."""
    raise InputError(f"{name}: got a packed model, wanted a dense one: {reason}, or {_WAY}")


_REFUSED: Mapping[str, Callable[..., None]] = {
    name: partial(_refuse, name, reason)
    for name, reason in {
        "fuse_lora": "an adapter cannot be fused into packed bits; leave it unfused",
        "fuse_qkv_projections": "fused projections are dense copies of packed ones; leave them apart",
    }.items()
}
