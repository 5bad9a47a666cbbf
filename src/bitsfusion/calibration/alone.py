"""Every layer calibrated by itself, at several bit widths, all others as they were: what a recipe chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bitsfusion.calibration.blocks import find_blocks
from bitsfusion.calibration.calibrate import watched
from bitsfusion.calibration.layer import CalibratedLayer, calibrated_layer, group_factors, weight_only_layer
from bitsfusion.calibration.moments import MomentSum
from bitsfusion.calibration.playback import BlockInputs, Outputs, Playback, Side
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import Call
from bitsfusion.nn.replace import layers_of


@torch.no_grad()
def calibrated_alone(
    model: nn.Module,
    names: Sequence[str],
    widths: Sequence[int],
    calls: Sequence[Call],
    settings: CalibrationSettings,
) -> dict[tuple[str, int], CalibratedLayer]:
    """Each layer on the original's own inputs, aiming at its own outputs; moments and factor serve all widths.

    Args:
        model: full precision, in evaluation mode; unchanged afterwards.
        names: of Linear and Conv2d layers.
        widths: bits of each, 1 to 8.
        calls: of the model, see `trajectories`.

    Returns:
        By (layer, bits). A layer that does not run once has the best scale of its weights alone.

    Raises:
        InputError: see `calibrate`.
    """
    layers = layers_of(model, dict.fromkeys(names, widths[0]))
    device = next(model.parameters()).device
    calls = [call.to(device) for call in calls]
    blocks = find_blocks(model, calls[0], names)
    playback = Playback(model, blocks, calls, Outputs(device))
    found: dict[tuple[str, int], CalibratedLayer] = {}
    for index, block in enumerate(blocks):
        inputs = BlockInputs(playback, index, Side.ORIGINAL)
        original = model.get_submodule(block.name)
        for group in block.groups:
            inner = {name: name[len(block.name) :].lstrip(".") for name in group}
            shared: dict[str, Any] = {name: layers[name] for name in group}
            total = MomentSum(shared, settings, len(calls))
            for number, (call, given) in enumerate(zip(calls, inputs, strict=True)):
                for input in watched(original, given, inner, block.repeated, outputs=False)[group[0]]:
                    total.add_run(number, call.guided, input, [layer(input) for layer in shared.values()])
            for name, moments in total.moments().items():
                factors = group_factors(moments.inputs.clone(), settings.damping)
                for bits in widths:
                    found[name, bits] = calibrated_layer(name, layers[name], moments, factors, bits, settings)
        for number, given in enumerate(inputs):
            playback.keep(index, Side.ORIGINAL, number, given.run(original))
        playback.forget(index)
    for name in names:
        for bits in widths:
            if (name, bits) not in found:
                found[name, bits] = weight_only_layer(name, layers[name], bits)
    return found
