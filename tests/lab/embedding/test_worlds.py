import random

import numpy as np
import pytest
import torch

from bitsfusion.embedded.world import fits
from bitsfusion_lab.embedding.grid_world import TrainedGridWorld
from bitsfusion_lab.embedding.quick_world import TrainedQuickWorld
from bitsfusion_lab.embedding.tokenizer import TEXT_LENGTH, build_tokenizer, tokenize


@pytest.fixture(params=[TrainedGridWorld, TrainedQuickWorld])
def world(request):
    return request.param()


def samples(world, count):
    rng = random.Random(0)
    for _ in range(count):
        prompt = world.training_prompt(rng)
        yield prompt, world.sample_scene(prompt, rng)


def test_what_is_sampled_fits_and_is_read(world):
    for prompt, scene in samples(world, 100):
        assert fits(prompt, scene) and world.shows(world.draw(scene), prompt)


def test_an_object_has_rms_one_and_an_empty_cell_is_zero(world):
    rng = random.Random(1)
    scenes = [world.random_scene(rng) for _ in range(400)]
    cells = world.encode(scenes).flatten(2).transpose(1, 2).reshape(-1, world.channels)
    used = cells.abs().sum(1) > 0
    assert used.sum() == sum(map(len, scenes))
    assert cells[used].square().mean().sqrt().item() == pytest.approx(1, abs=0.05)


def test_different_scenes_have_different_latents(world):
    rng = random.Random(2)
    scenes = list({tuple(sorted(world.random_scene(rng), key=str)) for _ in range(300)})
    latents = world.encode(scenes).flatten(1)
    distance = torch.cdist(latents, latents) + torch.eye(len(scenes)) * 9
    assert distance.min() > 0.5


def test_answers_are_in_range_and_tell_captions_apart(world):
    answers = {}
    for prompt, _ in samples(world, 500):
        given = world.structure(prompt)
        assert len(given) == len(world.structure_sizes)
        assert all(0 <= answer < size for answer, size in zip(given, world.structure_sizes, strict=True))
        assert answers.setdefault(tuple(given), prompt.include) == prompt.include
    assert len(answers) > 100


def test_foils_ask_for_something_else(world):
    rng = random.Random(3)
    for prompt, _ in samples(world, 100):
        assert world.foil(prompt, rng).tag == prompt.tag
    assert np.mean([world.foil(p, rng).include != p.include for p, _ in samples(world, 100)]) > 0.8


def test_every_caption_is_one_token_a_word(world):
    tokenizer = build_tokenizer(world.words())
    texts = [prompt.text for prompt, _ in samples(world, 300)]
    lengths = [len(text.replace(",", " , ").split()) + 2 for text in texts]
    assert max(lengths) <= TEXT_LENGTH
    ids = tokenize(tokenizer, texts)
    ends = (ids == tokenizer.eos_token_id).int().argmax(dim=1) + 1
    assert ends.tolist() == lengths
