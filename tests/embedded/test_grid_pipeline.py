"""The shipped grid model: its size, and that its VAE carries the world there and back."""

import random

import numpy as np
import pytest
import torch

from bitsfusion.embedded import GRID_PIPELINE_FOLDER, GRID_SCORER_FOLDER
from bitsfusion.embedded.grid import GRID, MOST_OBJECTS
from bitsfusion.embedded.world import CELLS, Object
from bitsfusion.pipelines.load import load_pipeline


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(str(GRID_PIPELINE_FOLDER))


def test_the_pipeline_and_all_package_data_are_small():
    assert megabytes(GRID_PIPELINE_FOLDER) <= 16
    assert megabytes(GRID_SCORER_FOLDER) <= 4
    assert megabytes(GRID_PIPELINE_FOLDER.parent) <= 40


def test_every_scene_survives_the_latents(pipeline):
    rng = random.Random(0)
    scenes = [
        tuple(
            Object(rng.choice(GRID.shapes), rng.choice(list(GRID.colors)), rng.choice(GRID.sizes), cell)
            for cell in sorted(rng.sample(range(CELLS), count % (MOST_OBJECTS + 1)))
        )
        for count in range(70)
    ]
    pixels = torch.from_numpy(np.stack([GRID.draw(scene) for scene in scenes])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0))
        decoded = pipeline.vae.decode(latents).sample
    images = decoded.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert [GRID.read(image) for image in images] == scenes


def test_every_caption_fits_the_text_encoder(pipeline):
    texts = [p.text for tag in GRID.tasks for p in GRID.all_prompts(tag, "test")]
    lengths = [len(ids) for ids in pipeline.tokenizer(texts).input_ids]
    assert max(lengths) <= pipeline.tokenizer.model_max_length
