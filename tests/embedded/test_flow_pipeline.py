"""The shipped flow model: its size, its parts, and that the captions decide what it draws."""

from __future__ import annotations

import numpy as np
import torch

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.embedded import MODELS
from bitsfusion.embedded.grid import GRID
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline

MODEL = MODELS["embedded:flow"]


def test_it_is_small_and_shares_what_it_did_not_train():
    files = [path for path in MODEL.pipeline.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    flow, grid = load_pipeline("embedded:flow"), load_pipeline("embedded:grid")
    for part in ("vae", "text_encoder"):
        theirs = getattr(grid, part).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(flow, part).state_dict().items())
    roles = [layer.role for layer in model_layers(flow.transformer).values()]
    assert roles.count(LayerRole.QUANTIZED) > len(roles) / 2


def test_most_single_objects_are_drawn_as_asked():
    prompts = [prompt for prompt in GRID.prompt_set("test", 12) if prompt.tag == "single_object"]
    pictures = generate_images(
        load_pipeline("embedded:flow"),
        [prompt.text for prompt in prompts],
        range(len(prompts)),
        steps=10,
        guidance=MODEL.guidance,
        sampler=MODEL.sampler,
    )
    right = [GRID.shows(picture, prompt) for prompt, picture in zip(prompts, pictures, strict=True)]
    assert np.mean(right) >= 0.5
