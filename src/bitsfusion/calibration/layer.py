"""One layer: from its moments to codes, scales and a bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitsfusion.calibration.biases import corrected_bias
from bitsfusion.calibration.codes import codes_by_columns, damped, descended
from bitsfusion.calibration.moments import Moments
from bitsfusion.calibration.scales import output_error, refitted_scale, scale_by_output
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
    name: str, layer: nn.Linear | nn.Conv2d, moments: Moments, bits: int, settings: CalibrationSettings
) -> CalibratedLayer:
    """Codes, scales and bias of least squared output error that the methods here find.

    Raises:
        InputError: names the layer; weights that are not finite, or moments that cannot be used.
    """
    weight = layer.weight.detach().float()
    start = layer_scale(name, weight, bits, ScaleInit.EXACT)
    groups = len(moments.inputs)
    rows = weight.flatten(1).unflatten(0, (groups, -1))
    codes, scales, biases, lost = [], [], [], 0.0
    for group in range(groups):
        part_codes, part_scale = _solved(
            rows[group].to(moments.inputs.dtype),
            moments.inputs[group],
            moments.cross[group],
            start.unflatten(0, (groups, -1))[group],
            bits,
            settings,
        )
        rounded = dequantize(part_codes, part_scale)
        codes.append(part_codes.to(torch.int16))
        scales.append(part_scale)
        biases.append(corrected_bias(rounded, moments.input_mean[group], moments.output_mean[group]))
        lost += float(squared_error(rounded, moments, group).sum())
    energy = float(moments.energy.sum())
    return CalibratedLayer(
        bits,
        torch.cat(codes).view(weight.shape).cpu(),
        torch.cat(scales).cpu(),
        None if layer.bias is None else torch.cat(biases).cpu(),
        lost / energy if energy > 0 else 0.0,
    )


def target_weights(weight: Tensor, moments: Tensor, cross: Tensor, ridge: Tensor) -> Tensor:
    """T of least E|y - T x|^2 + ridge |T - W|^2: T = (E[y x^T] + ridge W) (E[x x^T] + ridge I)^-1.

    Args:
        weight: W, [out, n].
        moments: [n, n], ridge not counted in.
        cross: [out, n].
        ridge: scalar.

    Source: the asymmetric calibration of GPTAQ (arXiv 2504.02692) as one linear solve, ours.
    """
    matrix = moments.clone()
    matrix.diagonal().add_(ridge)
    right = cross + ridge * weight
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        return torch.linalg.lstsq(matrix, right.t()).solution.t()
    return torch.cholesky_solve(right.t(), lower).t()


def squared_error(weight: Tensor, moments: Moments, group: int) -> Tensor:
    """E|y - Q x|^2 of each channel of one group, the bias being right: [out / g], not below 0."""
    rounded = weight.to(moments.inputs.dtype)
    explained = 2 * (rounded * moments.cross[group]).sum(1) - output_error(rounded, moments.inputs[group])
    return (moments.energy[group] - explained).clamp(min=0)


def _solved(
    weight: Tensor, moments: Tensor, cross: Tensor, start: Tensor, bits: int, settings: CalibrationSettings
) -> tuple[Tensor, Tensor]:
    """Codes and scale of one group."""
    ridged = damped(moments, settings.damping)
    target = target_weights(weight, moments, cross, (ridged.diagonal() - moments.diagonal()).mean())
    scale = scale_by_output(target, ridged, start, bits)
    codes = codes_by_columns(target, ridged, scale, bits)
    for _ in range(settings.sweeps):
        scale = refitted_scale(codes, target, ridged, scale)
        codes = descended(codes, target, ridged, scale, bits)
    return codes, refitted_scale(codes, target, ridged, scale)
