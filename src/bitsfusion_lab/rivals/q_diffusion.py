"""Q-Diffusion (Li et al., 2023, arXiv 2302.04304): post-training quantization, block by block, weights only.

Calibration inputs over time steps (section 4.1, see `calibration`); the weights of an up block's layers that see a
shortcut concatenated to their input get a quantizer for each part (section 4.2); block-wise reconstruction with
adaptive rounding, as BRECQ has it (section 3.2). First and last layer 8 bits; zero points and min-max scales, one per
output channel. Differs from the paper: activations are left as they are, as in every other method here, and there are
fewer iterations (the paper has 20 000 a block).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.func import functional_call

from bitsfusion.architectures.layers import FIRST_LAST_BITS, LayerRole
from bitsfusion.architectures.registry import layer_role
from bitsfusion.diffusion.samples import NoisySamples
from bitsfusion.progress import Progress, silent
from bitsfusion_lab.rivals.adaround import Rounding, learn_rounding
from bitsfusion_lab.rivals.calibration import predictions
from bitsfusion_lab.rivals.stored import StoredWeight

_BLOCKS = (ResnetBlock2D, BasicTransformerBlock)
_LAYERS = (nn.Linear, nn.Conv2d)


def units(unet: nn.Module, calibration: NoisySamples) -> list[str]:
    """What is reconstructed at a time, in the order of a forward: residual and transformer blocks, layers elsewhere."""
    blocks = [name for name, module in unet.named_modules() if isinstance(module, _BLOCKS)]
    inside = tuple(f"{name}." for name in blocks)
    single = [
        name for name, module in unet.named_modules() if isinstance(module, _LAYERS) and not name.startswith(inside)
    ]
    order: list[str] = []
    hooks = [
        unet.get_submodule(name).register_forward_pre_hook(lambda module, inputs, name=name: order.append(name))
        for name in (*blocks, *single)
    ]
    try:
        with torch.no_grad():
            next(calibration.split(1)).predict(unet)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


def shortcut_groups(unet: Any) -> dict[str, tuple[int, int]]:
    """The layers in up blocks whose input is [what comes up, shortcut], with the channels of each part.

    These are the first convolution and the `conv_shortcut` of every residual block there.
    """
    groups: dict[str, tuple[int, int]] = {}
    names = {module: name for name, module in unet.named_modules()}
    last = unet.mid_block if unet.mid_block else unet.down_blocks[-1]
    coming = last.resnets[-1].out_channels
    for block in unet.up_blocks:
        for resnet in block.resnets:
            parts = (coming, resnet.in_channels - coming)
            for layer in (resnet.conv1, resnet.conv_shortcut):
                if layer is not None:
                    groups[names[layer]] = parts
            coming = resnet.out_channels
    return groups


def quantize_unet(
    unet: Any,
    calibration: NoisySamples,
    bits: int = 4,
    *,
    iterations: int = 100,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, StoredWeight]:
    """Every Linear and Conv2d of `unet` (left unchanged) in `bits`, time layers included.

    Each unit learns to give full precision's output from the inputs that the units before it, already quantized,
    make; `iterations` steps each.
    """
    teacher, student = (copy.deepcopy(unet).eval().requires_grad_(False) for _ in range(2))
    generator = torch.Generator("cpu").manual_seed(seed)
    groups = shortcut_groups(unet)
    stored: dict[str, StoredWeight] = {}
    order = units(unet, calibration)
    for done, name in enumerate(order, start=1):
        unit = student.get_submodule(name)
        roundings = {
            leaf: Rounding(layer.weight, _bits(_join(name, leaf), bits), groups.get(_join(name, leaf), ()))
            for leaf, layer in unit.named_modules()
            if isinstance(layer, _LAYERS)
        }
        _, target = _record(teacher, name, calibration)
        calls, _ = _record(student, name, calibration)
        _reconstruct(unit, calls, target, roundings, iterations, generator)
        for leaf, rounding in roundings.items():
            made = rounding.stored()
            stored[_join(name, leaf)] = made
            unit.get_submodule(leaf).weight.data = made.dense()
        progress(done, len(order))
    return stored


def _bits(name: str, bits: int) -> int:
    return FIRST_LAST_BITS if layer_role(name) is LayerRole.FIRST_LAST else bits


def _join(unit: str, leaf: str) -> str:
    return f"{unit}.{leaf}" if leaf else unit


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _record(model: Any, name: str, calibration: NoisySamples) -> tuple[Call, Tensor]:
    """The arguments and the output of submodule `name` for all calibration inputs."""
    caught: list[tuple[Call, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, options, output: caught.append(((inputs, options), output)), with_kwargs=True
    )
    try:
        predictions(model, calibration)
    finally:
        hook.remove()
    calls = [call for call, _ in caught]
    together = tuple(_cat([call[0][i] for call in calls]) for i in range(len(calls[0][0])))
    options = {key: _cat([call[1][key] for call in calls]) for key in calls[0][1]}
    return (together, options), torch.cat([output for _, output in caught])


def _cat(values: list[Any]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _reconstruct(
    unit: nn.Module,
    call: Call,
    target: Tensor,
    roundings: Mapping[str, Rounding],
    iterations: int,
    generator: torch.Generator,
) -> None:
    arguments, options = call

    def chosen(value: Any, samples: Tensor) -> Any:
        return value[samples] if isinstance(value, Tensor) else value

    def output(weights: Mapping[str, Tensor], samples: Tensor) -> Tensor:
        named = {f"{leaf}.weight" if leaf else "weight": weight for leaf, weight in weights.items()}
        inputs = tuple(chosen(value, samples) for value in arguments)
        keywords = {key: chosen(value, samples) for key, value in options.items()}
        result: Tensor = functional_call(unit, named, inputs, keywords)
        return result

    learn_rounding(roundings, output, target, iterations, generator)
