"""Every class of diffusion transformer is calibrated along its pipeline's own trajectories."""

from __future__ import annotations

import pytest
import torch

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.calibration.calibrate import calibrate
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import trajectories
from bitsfusion.progress import silent

from ..tiny.transformers import CONFIGS, build_transformer_pipeline


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_follow_the_calls_of_the_pipeline(name):
    pipeline = build_transformer_pipeline(name)
    size = 16 if name == "SanaTransformer2DModel" else 8
    settings = CalibrationSettings(samples=2, steps=2, guidance=2.0, size=size, rows=256)
    model = pipeline.transformer
    calls = trajectories(pipeline, model, ["red circle", "blue square"], settings, silent)
    assert len(calls) >= settings.steps
    bits = dict.fromkeys(layers_to_assign(model), 2)
    made = calibrate(model, bits, calls, settings, silent, None)
    assert made.layers.keys() == bits.keys()
    assert all(torch.isfinite(codes.scale).all() for codes in made.layers.values())
