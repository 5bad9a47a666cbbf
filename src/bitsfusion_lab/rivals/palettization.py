"""Mixed-bit palettization, after Apple's ml-stable-diffusion: k-means palettes, bits by each layer's own PSNR.

There is no paper; the procedure is that of the repository's mixed-bit pre-analysis: each layer alone is palettized at
every bit width and the PSNR of the model's output measured; a threshold on the PSNR then gives each layer the fewest
bits that reach it. The threshold is what sets the average.
Differs from it: no smallest layer size (theirs leaves out layers below 100 000 weights, most of a small model), and 8
bits where theirs would leave 16.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitsfusion.architectures.registry import model_layers
from bitsfusion.diffusion.samples import NoisySamples
from bitsfusion.errors import InputError
from bitsfusion.progress import Progress, silent
from bitsfusion_lab.rivals.calibration import predictions
from bitsfusion_lab.rivals.stored import PaletteWeight

PALETTE_BITS = (1, 2, 4, 6, 8)
_MOST_ROUNDS = 100


def palettize(weight: Tensor, bits: int) -> PaletteWeight:
    """A layer's weight ([out, ...]) with the 2^b values that Lloyd's k-means finds; it begins at quantiles.

    Values are one-dimensional, so that clusters are intervals: sums over them come from one sorted list.
    """
    values = weight.detach().double().flatten()
    ordered = values.sort().values
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    count, size = 1 << bits, len(ordered)
    palette = ordered[((torch.arange(count) + 0.5) * size / count).long()].unique()
    for _ in range(_MOST_ROUNDS):
        inner = torch.searchsorted(ordered, (palette[1:] + palette[:-1]) / 2)
        edges = torch.cat([torch.zeros(1, dtype=torch.int64), inner, torch.tensor([size])])
        held = edges.diff()
        means = torch.where(held > 0, sums[edges].diff() / held.clamp(min=1), palette)
        if torch.equal(means, palette):
            break
        palette = means
    stored = torch.cat([palette, palette[-1:].expand(count - len(palette))]).half()
    middles = (stored[1:].double() + stored[:-1].double()) / 2
    codes = torch.searchsorted(middles, values).to(torch.uint8)
    return PaletteWeight(bits, codes.reshape(weight.shape), stored)


@torch.no_grad()
def layer_psnr(unet: Any, calibration: NoisySamples, progress: Progress = silent) -> dict[str, dict[int, float]]:
    """PSNR (dB) of the UNet's output with one layer alone palettized: layer -> b -> dB, b in `PALETTE_BITS`.

    The peak is the largest magnitude of the full-precision output.
    """
    model = copy.deepcopy(unet).eval()
    target = predictions(model, calibration)
    peak = target.abs().max()
    layers = model_layers(model)
    measured: dict[str, dict[int, float]] = {}
    for done, name in enumerate(layers, start=1):
        weight = model.get_submodule(name).weight
        own = weight.data
        measured[name] = {}
        for bits in PALETTE_BITS:
            weight.data = palettize(own, bits).dense()
            error = (predictions(model, calibration) - target).square().mean().sqrt()
            measured[name][bits] = float(20 * torch.log10(peak / error.clamp(min=1e-12)))
        weight.data = own
        progress(done, len(layers))
    return measured


def palette_recipe(
    psnr: Mapping[str, Mapping[int, float]], weights: Mapping[str, int], target_bits: float
) -> tuple[dict[str, int], float]:
    """Bits by the highest threshold whose average stays within `target_bits`, and that threshold in dB.

    Args:
        psnr: from `layer_psnr`.
        weights: number of weights of each layer.
        target_bits: average of b over all weights; palettes come on top.

    Raises:
        InputError: not even the lowest threshold stays within it.
    """
    thresholds = sorted({value for layer in psnr.values() for value in layer.values()}, reverse=True)
    total = sum(weights.values())
    for threshold in thresholds:
        bits = {name: _fewest(layer, threshold) for name, layer in psnr.items()}
        if sum(count * weights[name] for name, count in bits.items()) <= target_bits * total:
            return bits, threshold
    raise InputError(f"palettes: got a target of {target_bits} bits, wanted at least {PALETTE_BITS[0]}")


def _fewest(layer: Mapping[int, float], threshold: float) -> int:
    return next((bits for bits in PALETTE_BITS if layer[bits] >= threshold), PALETTE_BITS[-1])
