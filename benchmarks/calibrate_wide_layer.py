"""Time and peak memory of calibrating one wide convolution: python benchmarks/calibrate_wide_layer.py --channels 1280.

Random weights and inputs, 3x3 windows; Stable Diffusion v1.5's widest has 2560 channels of inputs and 1280 outputs.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import nn

from bitsfusion.calibration.layer import calibrated_layer, group_factors
from bitsfusion.calibration.moments import MomentSum
from bitsfusion.calibration.settings import CalibrationSettings


def peak() -> float:
    """GB of 10^9 bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=1280)
    parser.add_argument("--outputs", type=int, default=1280)
    parser.add_argument("--latents", type=int, default=24, help="of 8x8 places")
    parser.add_argument("--sweeps", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    settings = CalibrationSettings(sweeps=options.sweeps)
    layer = nn.Conv2d(options.channels, options.outputs, 3, padding=1)
    inputs = torch.randn(options.latents, options.channels, 8, 8)
    outputs, before, began = layer(inputs), peak(), time.process_time()

    def tell(step: str) -> None:
        print(f"{step:8} {time.process_time() - began:6.1f} s  {peak() - before:5.2f} GB more than before", flush=True)

    total = MomentSum({"layer": layer}, settings)
    total.add_run(0, None, inputs, [outputs])
    moments = total.moments()["layer"]
    tell("moments")
    factors = group_factors(moments.inputs, settings.damping)
    tell("factor")
    made = calibrated_layer("layer", layer, moments, factors, 2, settings)
    tell("solved")
    columns = layer.weight[0].numel()
    print(f"{columns} columns: {4 * columns**2 / 1e9:.2f} GB a matrix; relative error {made.error:.4f}")


if __name__ == "__main__":
    main()
