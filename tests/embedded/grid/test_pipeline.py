"""The shipped grid model: its size, and that its VAE carries the world there and back."""

import random

import numpy as np
import pytest
import torch

from bitsfusion.embedded import grid
from bitsfusion.pipelines.load import load_pipeline


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(str(grid.PIPELINE_FOLDER))


def test_the_pipeline_and_all_package_data_are_small():
    assert megabytes(grid.PIPELINE_FOLDER) <= 16
    assert megabytes(grid.SCORER_FOLDER) <= 4
    assert megabytes(grid.PIPELINE_FOLDER.parent) <= 40


def test_every_scene_survives_the_latents(pipeline):
    rng = random.Random(0)
    scenes = [
        tuple(
            grid.Object(rng.choice(grid.SHAPES), rng.choice(list(grid.COLORS)), rng.choice(grid.SIZES), cell)
            for cell in sorted(rng.sample(range(grid.CELLS), count % (grid.MOST_OBJECTS + 1)))
        )
        for count in range(70)
    ]
    pixels = torch.from_numpy(np.stack([grid.draw(scene) for scene in scenes])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0))
        decoded = pipeline.vae.decode(latents).sample
    images = decoded.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert [grid.read(image) for image in images] == scenes


def test_every_caption_fits_the_text_encoder(pipeline):
    texts = [p.text for tag in grid.TASKS for p in grid.all_prompts(tag, "test")]
    lengths = [len(ids) for ids in pipeline.tokenizer(texts).input_ids]
    assert max(lengths) <= pipeline.tokenizer.model_max_length
