"""The entropy of each layer's levels at every bit width, before training: what it will cost on disk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.registry import model_layers
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import MAX_BITS, MIN_BITS, ScaleInit, quantize
from bitsfusion.packing.entropy import entropy_bits
from bitsfusion.progress import Progress, silent
from bitsfusion.sensitivity.table import MEASURED_BITS

SAMPLED_WEIGHTS = 1 << 17
"""Above the measured bit widths at most about so many weights of a layer are counted, in whole output channels, evenly
spaced: finding the best scale for 256 steps takes 50 times as long as for one."""


@torch.no_grad()
def level_entropies(
    unet: nn.Module,
    scale_init: ScaleInit = ScaleInit.EXACT,
    progress: Progress = silent,
    architecture: Architecture | None = None,
) -> dict[str, tuple[float, ...]]:
    """Bits a weight of every Linear and Conv2d at 1, 2 .. 8 bits: the order-0 entropy of all its levels together.

    Args:
        progress: called with the layers done and the layers in all.
        architecture: the model's; found by its class where not given.
    """
    layers, found = model_layers(unet, architecture), {}
    for done, name in enumerate(layers, start=1):
        weight = unet.get_parameter(f"{name}.weight")
        found[name] = tuple(_entropy(name, weight, bits, scale_init) for bits in range(MIN_BITS, MAX_BITS + 1))
        progress(done, len(layers))
    return found


def _entropy(name: str, weight: Tensor, bits: int, scale_init: ScaleInit) -> float:
    if bits > MEASURED_BITS[-1]:
        weight = weight[:: -(-weight.numel() // SAMPLED_WEIGHTS)]
    levels = quantize(weight, layer_scale(name, weight, bits, scale_init), bits)
    return entropy_bits(levels, bits) / levels.numel()
