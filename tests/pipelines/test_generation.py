from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler

from bitsfusion.errors import InputError
from bitsfusion.pipelines.generation import generate_images, initial_latents

from ..tiny.pipeline import build_one_block_pipeline
from ..tiny.text import PROMPTS

SEEDS = [5, 6, 7, 5, 9]


@pytest.fixture(scope="module")
def pipeline():
    return build_one_block_pipeline()


def far(a, b) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).max())


def test_an_image_depends_on_its_prompt_and_seed_alone(pipeline):
    images = generate_images(pipeline, PROMPTS, SEEDS, steps=4, batch_size=5)
    assert images.shape == (5, 16, 16, 3) and images.dtype == np.uint8
    assert images.std() > 5
    in_twos = generate_images(pipeline, PROMPTS, SEEDS, steps=4, batch_size=2)
    assert far(images, in_twos) <= 1  # rounding
    alone = generate_images(pipeline, PROMPTS[3:4], SEEDS[3:4], steps=4)
    assert far(images[3:4], alone) <= 1
    np.testing.assert_array_equal(images, generate_images(pipeline, PROMPTS, SEEDS, steps=4, batch_size=5))
    assert far(images[0], images[1]) > 5


def test_is_what_the_pipeline_itself_makes(pipeline):
    ours = generate_images(pipeline, PROMPTS[:1], [3], steps=4, guidance=5.0)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    output = pipeline(PROMPTS[0], latents=latents, num_inference_steps=4, guidance_scale=5.0)
    np.testing.assert_array_equal(ours[0], np.asarray(output.images[0]))


def test_settings_matter(pipeline):
    base = generate_images(pipeline, PROMPTS[:2], [1, 2], steps=4, guidance=7.5, sampler="pndm")
    for change in (dict(sampler="ddim"), dict(sampler="dpm"), dict(steps=5), dict(guidance=1.0)):
        settings = dict(steps=4, guidance=7.5, sampler="pndm") | change
        assert far(base, generate_images(pipeline, PROMPTS[:2], [1, 2], **settings)) > 0, change


def test_the_pipeline_is_left_as_it_was(pipeline):
    scheduler, bar = pipeline.scheduler, dict(pipeline._progress_bar_config)
    generate_images(pipeline, PROMPTS[:1], [0], steps=1, sampler="ddim")
    assert pipeline.scheduler is scheduler and isinstance(scheduler, PNDMScheduler)
    assert pipeline._progress_bar_config == bar
    assert pipeline.config["scheduler"] == ("diffusers", "PNDMScheduler")


def test_latents_come_from_their_own_seeds(pipeline):
    latents = initial_latents(pipeline, [3, 4, 3])
    assert torch.equal(latents[0], latents[2]) and not torch.equal(latents[0], latents[1])


def test_no_prompts_no_images(pipeline):
    assert generate_images(pipeline, [], []).shape == (0, 16, 16, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seeds=[1]), "2 prompts and 1 seeds"),
        (dict(sampler="no such"), "sampler: got .no such."),
        (dict(steps=0), "0 steps"),
    ],
    ids=["seeds", "sampler", "steps"],
)
def test_refuses(pipeline, change, message):
    with pytest.raises(InputError, match=message):
        generate_images(pipeline, **({"prompts": PROMPTS[:2], "seeds": [1, 2]} | change))
