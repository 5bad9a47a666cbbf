"""A sensitivity table from the weights alone: no data, no forward pass, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bitsfusion.architectures.layers import LayerInfo, LayerRole
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, rounded
from bitsfusion.progress import Progress, silent
from bitsfusion.sensitivity.table import MEASURED_BITS, SensitivityRow, SensitivityTable

METHOD = "weight_error"
ROWS = 64
"""Output channels looked at in each layer, evenly spread."""

_GAUSSIAN_INPUTS = 1024

SIZE_EXPONENT = -0.25
"""An error counts times this power of its layer's size: large layers bear more.

The paper's score has N^-0.3 on errors of images. On the embedded model, untrained, the recipes of least noise error
came from 0 and -0.25 at 1.99 bits, from -1 at 2.5 and 3.5 (which has twice the error at 1.99); 1, the plain sum over
weights, was the worst throughout.
"""


def weight_error_table(
    layers: Mapping[str, LayerInfo],
    weight: Callable[[str], Tensor],
    *,
    model: str,
    feature_values: int = 0,
    progress: Progress = silent,
) -> SensitivityTable:
    """The squared error that quantization leaves in each layer's weights, relative to their energy, times N^-0.25.

    Differs from the paper: a stand-in for its measurement (section 3.2), which looks at images. It sees which weights
    are hard to round and which are few; it does not see what a layer does to the output.

    Args:
        layers: all layers of the UNet.
        weight: a layer's weight by its name, [out, ...].
        model: as the table records it.
        feature_values: how many values of time features are stored.
        progress: told the layers done and the layers in all.

    Raises:
        InputError: names a layer whose weights are not finite.
    """
    chosen = {name: info.numel for name, info in layers.items() if info.role is LayerRole.QUANTIZED}
    rows = []
    for done, name in enumerate(chosen, start=1):
        part = weight(name)
        part = part[:: max(1, part.shape[0] // ROWS)].float()
        for bits in MEASURED_BITS:
            started = time.monotonic()
            error = relative_error(name, part, bits) * chosen[name] ** SIZE_EXPONENT
            rows.append(SensitivityRow(layer=name, bits=bits, mse=error, seconds=time.monotonic() - started))
        progress(done, len(chosen))
    return _table(layers, rows, model, feature_values)


def gaussian_error_table(layers: Mapping[str, LayerInfo], *, model: str, feature_values: int = 0) -> SensitivityTable:
    """The same for layers whose weights are not known, as if all were Gaussian; see `weight_error_table`."""
    sample = torch.randn(ROWS, _GAUSSIAN_INPUTS, generator=torch.Generator().manual_seed(0))
    errors = {bits: relative_error("gaussian", sample, bits) for bits in MEASURED_BITS}
    rows = [
        SensitivityRow(layer=name, bits=bits, mse=error * info.numel**SIZE_EXPONENT, seconds=0)
        for name, info in layers.items()
        if info.role is LayerRole.QUANTIZED
        for bits, error in errors.items()
    ]
    return _table(layers, rows, model, feature_values)


def _table(
    layers: Mapping[str, LayerInfo], rows: list[SensitivityRow], model: str, feature_values: int
) -> SensitivityTable:
    by_role = {role: {n: info.numel for n, info in layers.items() if info.role is role} for role in LayerRole}
    return SensitivityTable(
        model=model,
        source_sha256=None,
        method=METHOD,
        settings={"rows": ROWS, "size_exponent": SIZE_EXPONENT},
        layers=by_role[LayerRole.QUANTIZED],
        removed=by_role[LayerRole.TIME],
        first_last=by_role[LayerRole.FIRST_LAST] | by_role[LayerRole.CONDITION],
        feature_values=feature_values,
        rows=rows,
    )


def relative_error(name: str, weight: Tensor, bits: int) -> float:
    """||w - w_q||^2 / ||w||^2 with the best scale per channel; 0 for weights that are all zero."""
    scale = layer_scale(name, weight, bits, ScaleInit.EXACT)
    energy = float(weight.double().square().sum())
    error = (weight - rounded(weight, scale, bits)).double().square().sum()
    return float(error) / energy if energy > 0 else 0.0
