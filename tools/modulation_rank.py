"""How many directions the time features of a model need: `python tools/modulation_rank.py embedded:flow`.

Features at all integer time steps, less their mean; for each tolerance the least rank that leaves no more than that
share of their root mean square. Prints a row of a Markdown table for each.

With `--pixels N`: N pictures drawn with a basis of each tolerance in the place of the layers, beside those with layers,
whatever the basis takes; their differences in pixels, of 255.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch

from bitsfusion.diffusion.denoise import with_denoiser
from bitsfusion.diffusion.time_features import TimeFeatureBasis, place_time_features, time_layers
from bitsfusion.diffusion.time_features.fit import fit_time_basis
from bitsfusion.diffusion.time_features.layers import time_outputs, time_outputs_width
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline

TOLERANCES = (0.02, 0.01, 0.005, 0.002, 0.001)
STEPS = 1000
COLORS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "cross")


def pixels(pipeline: Any, model: Any, count: int) -> None:
    """Prints what features in the place of the layers change."""
    prompts = [f"a {COLORS[place % 4]} {SHAPES[place // 4 % 4]}" for place in range(count)]
    seeds = list(range(count))

    def draw(drawn_by: Any) -> np.ndarray:
        return generate_images(drawn_by, prompts, seeds, 28, 3.0, "own").astype(int)

    wanted = draw(pipeline)
    print("| tolerance | rank | values | mean difference of a pixel | largest | pixels that differ |")
    print("|---|---|---|---|---|---|")
    for tolerance in TOLERANCES[1:]:
        basis = fit_time_basis(model, STEPS, tolerance, most_values=1 << 30)
        if basis is None:
            print(f"| {tolerance} | none | | | | |")
            continue
        changed = copy.deepcopy(model)
        place_time_features(changed, TimeFeatureBasis(basis))
        difference = abs(draw(with_denoiser(pipeline, changed)) - wanted)
        rank, share = basis.rank, float((difference > 0).mean())
        print(
            f"| {tolerance} | {rank} | {basis.values:,} | {difference.mean():.4f} | {difference.max()} | {share:.2%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--pixels", type=int, default=0, metavar="N")
    asked = parser.parse_args()
    pipeline = load_pipeline(asked.model)
    model = getattr(pipeline, "transformer", None) or pipeline.unet
    if asked.pixels:
        pixels(pipeline, model, asked.pixels)
        return
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
