"""How many directions the time features of a model need: `python tools/modulation_rank.py embedded:flow`.

Features at all integer time steps, less their mean; for each tolerance the least rank that leaves no more than that
share of their root mean square. Prints a row of a Markdown table for each.
"""

from __future__ import annotations

import sys

import torch

from bitsfusion.diffusion.time_features import time_layers
from bitsfusion.diffusion.time_features.layers import time_outputs, time_outputs_width
from bitsfusion.pipelines.load import load_pipeline

TOLERANCES = (0.02, 0.01, 0.005, 0.002, 0.001)
STEPS = 1000


def main() -> None:
    pipeline = load_pipeline(sys.argv[1])
    model = getattr(pipeline, "transformer", None) or pipeline.unet
    gram = torch.zeros(STEPS, STEPS, dtype=torch.float64)
    for _, part in time_outputs(model, torch.arange(STEPS, dtype=torch.float32)):
        left = part.double() - part.double().mean(0)
        gram += left @ left.T
    energy = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    left = energy.sum() - energy.cumsum(0)
    weights = sum(model.get_parameter(f"{name}.weight").numel() for name in time_layers(model))
    print(f"{weights:,} weights, {time_outputs_width(model):,} values a step")
    print("| error | rank |\n|---|---|")
    for tolerance in TOLERANCES:
        print(f"| {tolerance} | {int((left > tolerance**2 * energy.sum()).sum()) + 1} |")


if __name__ == "__main__":
    main()
