"""What is kept of a sampler's calls: their arguments, and how guidance mixes the two halves."""

from __future__ import annotations

import pytest
import torch

from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import _mixture, trajectories

from ..tiny.pipeline import build_one_block_pipeline


@pytest.mark.parametrize(("guidance", "mixture"), [(7.5, (-6.5, 7.5)), (3.0, (-2.0, 3.0)), (1.0, None)])
def test_the_mixture_is_found_from_what_the_scheduler_steps_by(guidance, mixture):
    torch.manual_seed(0)
    pipeline = build_one_block_pipeline()
    settings = CalibrationSettings(samples=3, steps=2, guidance=guidance, batch_size=2)
    calls = trajectories(pipeline, pipeline.unet, ["a circle", "a square"], settings)
    assert len(calls) == 2 * (2 + 1)  # PNDM asks twice in its first step
    assert [len(call.args[0]) for call in calls] == ([4] * 3 + [2] * 3 if mixture else [2] * 3 + [1] * 3)
    assert all(call.guided == (None if mixture is None else pytest.approx(mixture, abs=1e-3)) for call in calls)
    assert "step" not in vars(pipeline.scheduler)
    assert all(torch.isfinite(call.args[0]).all() for call in calls)


def test_a_step_by_something_else_is_no_mixture():
    torch.manual_seed(0)
    predicted, other = torch.randn(4, 6, 5, 5), torch.randn(2, 3, 5, 5)
    assert _mixture(predicted, other) is None
    assert _mixture(predicted, predicted) is None
    first, second = predicted[:, :3].chunk(2)  # the other channels are a learned variance
    assert _mixture(predicted, 2 * (4 * second - 3 * first)) == pytest.approx((-3, 4))
    assert _mixture(predicted, second - first) is None
