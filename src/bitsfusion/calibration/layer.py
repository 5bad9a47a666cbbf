"""One layer: from its moments to codes, scales and a bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitsfusion.calibration.biases import corrected_bias
from bitsfusion.calibration.codes import codes_by_columns, descended
from bitsfusion.calibration.factor import Factored, factored, solved
from bitsfusion.calibration.moments import Moments
from bitsfusion.calibration.scales import scale_by_output
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.nn.rounded import RoundedLayer
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, dequantize, quantize


@dataclass(frozen=True)
class CalibratedLayer(RoundedLayer):
    """A rounded layer, on the CPU, and how well it does.

    Fields:
        error: E|y - y'|^2 / E|y|^2 of the outputs aimed at, on the calibration's own inputs, means left out where the
            layer has a bias; None where the layer never ran.
    """

    error: float | None


def weight_only_layer(name: str, layer: nn.Linear | nn.Conv2d, bits: int) -> CalibratedLayer:
    """A layer that never ran: the best scale of its weights alone."""
    weight = layer.weight.detach().float()
    scale = layer_scale(name, weight, bits, ScaleInit.EXACT)
    bias = None if layer.bias is None else layer.bias.detach().float().cpu()
    return CalibratedLayer(bits, quantize(weight, scale, bits).cpu(), scale.cpu(), bias, None)


def calibrated_layer(
    name: str,
    layer: nn.Linear | nn.Conv2d,
    moments: Moments,
    factors: Sequence[Factored],
    bits: int,
    settings: CalibrationSettings,
) -> CalibratedLayer:
    """Codes, scales and bias of least squared output error that the methods here find.

    Args:
        factors: of the moments' inputs, one a group: see `group_factors`.

    Raises:
        InputError: names the layer; weights that are not finite.
    """
    weight = layer.weight.detach().float()
    start = layer_scale(name, weight, bits, ScaleInit.EXACT)
    groups = len(factors)
    rows = weight.flatten(1).unflatten(0, (groups, -1))
    codes, scales, biases, lost = [], [], [], 0.0
    for group, factor in enumerate(factors):
        cross = moments.cross[group]
        target = target_weights(rows[group], cross, factor)
        scale = scale_by_output(target, factor, start.unflatten(0, (groups, -1))[group], bits)
        found = codes_by_columns(target, factor, scale, bits)
        found, scale, through = descended(found, target, factor.moments, scale, bits, settings.sweeps)
        rounded = dequantize(found, scale)
        codes.append(found.to(_code_dtype(bits)))
        scales.append(scale)
        biases.append(corrected_bias(rounded, moments.input_mean[group], moments.output_mean[group]))
        damped = (found * through).sum(1) * scale.double().square().to(found.dtype)
        lost += float(_squared_error(rounded.to(found.dtype), moments.energy[group], cross, damped, factor).sum())
    energy = float(moments.energy.sum())
    return CalibratedLayer(
        bits,
        torch.cat(codes).view(weight.shape).cpu(),
        torch.cat(scales).cpu(),
        None if layer.bias is None else torch.cat(biases).cpu(),
        lost / energy if energy > 0 else 0.0,
    )


def _code_dtype(bits: int) -> torch.dtype:
    """8 bits have levels up to 128 on both sides."""
    return torch.int8 if bits < 8 else torch.int16


def group_factors(inputs: Tensor, damping: float) -> tuple[Factored, ...]:
    """The damped and factored moments [g, n, n] of each group; the diagonals are changed in place."""
    return tuple(factored(group, damping) for group in inputs)


def target_weights(weight: Tensor, cross: Tensor, factor: Factored) -> Tensor:
    """T of least E|y - T x|^2 + ridge |T - W|^2: T = (E[y x^T] + ridge W) (E[x x^T] + ridge I)^-1.

    Args:
        weight: W, [out, n].
        cross: [out, n].
        factor: of E[x x^T] + ridge I.

    Returns:
        [out, n] in the moments' dtype.

    Source: the asymmetric calibration of GPTAQ (arXiv 2504.02692) as one linear solve, ours.
    """
    right = cross + factor.ridge * weight.to(cross.dtype)
    return solved(right[:, factor.order], factor.lower)[:, factor.order.argsort()]


def _squared_error(weight: Tensor, energy: Tensor, cross: Tensor, damped: Tensor, factor: Factored) -> Tensor:
    """E|y - Q x|^2 of each channel of one group, the bias being right: [out / g], not below 0; `damped` is Q H Q."""
    through = damped - factor.ridge * weight.square().sum(1)
    return (energy - 2 * (weight * cross).sum(1) + through).clamp(min=0)
