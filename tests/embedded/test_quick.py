import random

import numpy as np
import pytest

from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import IMAGE_SIZE, TASKS, UNREADABLE, Object, fits


def drawn(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        prompt = QUICK.sample_prompt(rng)
        yield prompt, QUICK.sample_scene(prompt, rng)


def test_sampled_scenes_fit_their_prompts():
    assert all(fits(prompt, scene) for prompt, scene in drawn(2000))


def test_the_reader_reads_drawings_exactly():
    assert all(set(QUICK.read(QUICK.draw(scene))) == set(scene) for _, scene in drawn(300))


def test_the_reader_reads_through_noise():
    noise = np.random.default_rng(0)
    right = 0
    for prompt, scene in drawn(300):
        image = np.clip(QUICK.draw(scene) + noise.normal(0, 12, (IMAGE_SIZE, IMAGE_SIZE, 3)), 0, 255).astype(np.uint8)
        right += fits(prompt, QUICK.read(image))
    assert right >= 297


def test_shuffled_captions_are_near_chance():
    pairs = list(drawn(600))
    scenes = [QUICK.read(QUICK.draw(scene)) for _, scene in pairs]
    right = sum(fits(prompt, scene) for (prompt, _), scene in zip(pairs, scenes[1:] + scenes[:1], strict=True))
    assert right / len(pairs) <= 0.10


def test_what_cannot_be_read_fails_the_check():
    image = QUICK.draw((Object("circle", "red", "large", 5),))
    image[40:44, 4:30] = (200, 10, 200)
    assert {item.shape for item in QUICK.read(image)} == {"circle", UNREADABLE}
    prompt = next(p for p in QUICK.all_prompts("colors", "train") if p.text.endswith("a red circle"))
    assert fits(prompt, QUICK.read(QUICK.draw((Object("circle", "red", "large", 10),)))) and not fits(
        prompt, QUICK.read(image)
    )


@pytest.mark.parametrize(
    ("relation", "cells", "holds"),
    [
        ("left of", (5, 6), True),
        ("left of", (6, 5), False),
        ("above", (5, 9), True),
        ("below", (5, 9), False),
        ("right of", (10, 5), True),
    ],
)
def test_relations(relation, cells, holds):
    prompt = next(p for p in QUICK.all_prompts("position", "train") if p.text.endswith(f"a circle {relation} a square"))
    scene = (Object("circle", "red", "large", cells[0]), Object("square", "blue", "large", cells[1]))
    assert fits(prompt, scene) is holds


@pytest.mark.parametrize("tag", TASKS)
def test_splits_share_no_caption(tag):
    texts = [{prompt.text for prompt in QUICK.all_prompts(tag, split)} for split in ("train", "validation", "test")]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_prompt_set_and_metadata():
    prompts = QUICK.prompt_set("test", 5)
    assert [prompt.tag for prompt in prompts] == [tag for tag in TASKS for _ in range(5)]
    position = next(prompt for prompt in prompts if prompt.tag == "position")
    relation = position.include[1].position[0]
    assert position.metadata() == {
        "tag": "position",
        "include": [
            {"class": position.include[0].shape, "count": 1},
            {"class": position.include[1].shape, "count": 1, "position": [relation, 0]},
        ],
        "prompt": position.text,
    }
