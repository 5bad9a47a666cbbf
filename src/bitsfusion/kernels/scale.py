"""The scale search of `ScaleInit.EXACT`, compiled where there is a library: the same optimum, sooner."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsfusion.kernels.cpu.library import Library, library
from bitsfusion.kernels.cpu.library import exact_scale as compiled
from bitsfusion.numerics import ScaleInit, half_levels, initial_scale


def exact_scale(rows: Tensor, bits: int) -> Tensor:
    """`initial_scale(rows, bits, ScaleInit.EXACT)`: the same to float32 rounding, except where two scales tie.

    Args:
        rows: [out, n] float32, finite: one row an output channel.
        bits: 1 to 8.

    Returns:
        [out] float32; a row of zeros gets 0.

    Raises:
        InputError: as `initial_scale`.
    """
    usable = rows.dim() == 2 and rows.numel() > 0 and rows.dtype == torch.float32 and rows.device.type == "cpu"
    if usable and isinstance(library(), Library) and bool(torch.isfinite(rows).all()):
        scale = compiled(rows.detach(), half_levels(bits))
        if scale is not None:
            return scale
    return initial_scale(rows, bits, ScaleInit.EXACT)
