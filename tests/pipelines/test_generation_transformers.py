"""Pictures of every class of diffusion transformer, by prompt and seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from bitsfusion.diffusion.samplers import build_scheduler
from bitsfusion.errors import InputError
from bitsfusion.pipelines.generation import generate_images

from ..tiny.transformers import build_transformer_pipeline

SIZED = {"AuraFlowTransformer2DModel": 32, "PixArtTransformer2DModel": 16, "SD3Transformer2DModel": 16}
"""Pixels of classes whose config says the size; AuraFlow's is that of its position embeddings."""


@pytest.mark.parametrize("name", SIZED)
def test_a_picture_follows_from_its_prompt_and_seed(name):
    pipeline = build_transformer_pipeline(name)
    options = {"steps": 2, "guidance": 2.0, "sampler": "own"}
    both = generate_images(pipeline, ["red circle", "blue square"], [3, 4], **options)
    second = generate_images(pipeline, ["blue square"], [4], **options)
    assert both.dtype == np.uint8 and both.shape[1:] == (SIZED[name], SIZED[name], 3)
    assert np.abs(both[1].astype(int) - second[0].astype(int)).max() <= 1


def test_a_flow_is_drawn_by_samplers_that_know_flows():
    config = dict(build_transformer_pipeline("AuraFlowTransformer2DModel").scheduler.config)
    config["_class_name"] = "FlowMatchEulerDiscreteScheduler"
    solver = build_scheduler("dpm", config)
    assert solver.config.use_flow_sigmas and solver.config.flow_shift == 3.0
    with pytest.raises(InputError, match="flow matching"):
        build_scheduler("pndm", config)
