import random

import numpy as np
import pytest

from bitsfusion.data.world.captions import TASKS, all_prompts, fits, prompt_set, sample_prompt, sample_scene
from bitsfusion.data.world.reader import UNREADABLE, read
from bitsfusion.data.world.scene import IMAGE_SIZE, Object, draw


def drawn(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        prompt = sample_prompt(rng)
        yield prompt, sample_scene(prompt, rng)


def test_sampled_scenes_fit_their_prompts():
    assert all(fits(prompt, scene) for prompt, scene in drawn(2000))


def test_the_reader_reads_drawings_exactly():
    assert all(set(read(draw(scene))) == set(scene) for _, scene in drawn(300))


def test_the_reader_reads_through_noise():
    noise = np.random.default_rng(0)
    right = 0
    for prompt, scene in drawn(300):
        image = np.clip(draw(scene) + noise.normal(0, 12, (IMAGE_SIZE, IMAGE_SIZE, 3)), 0, 255).astype(np.uint8)
        right += fits(prompt, read(image))
    assert right >= 297


def test_shuffled_captions_are_near_chance():
    pairs = list(drawn(600))
    scenes = [read(draw(scene)) for _, scene in pairs]
    right = sum(fits(prompt, scene) for (prompt, _), scene in zip(pairs, scenes[1:] + scenes[:1], strict=True))
    assert right / len(pairs) <= 0.10


def test_what_cannot_be_read_fails_the_check():
    image = draw((Object("circle", "red", 0),))
    image[40:44, 4:30] = (200, 10, 200)
    assert {item.shape for item in read(image)} == {"circle", UNREADABLE}
    prompt = next(p for p in all_prompts("colors", "train") if p.text.endswith("a red circle"))
    assert fits(prompt, read(draw((Object("circle", "red", 3),)))) and not fits(prompt, read(image))


@pytest.mark.parametrize(
    ("relation", "slots", "holds"),
    [
        ("left of", (0, 1), True),
        ("left of", (1, 0), False),
        ("above", (0, 2), True),
        ("below", (0, 2), False),
        ("right of", (3, 0), True),
    ],
)
def test_relations(relation, slots, holds):
    prompt = next(p for p in all_prompts("position", "train") if p.text.endswith(f"a circle {relation} a square"))
    scene = (Object("circle", "red", slots[0]), Object("square", "blue", slots[1]))
    assert fits(prompt, scene) is holds


@pytest.mark.parametrize("tag", TASKS)
def test_splits_share_no_caption(tag):
    texts = [{prompt.text for prompt in all_prompts(tag, split)} for split in ("train", "validation", "test")]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_prompt_set_and_metadata():
    prompts = prompt_set("test", 5)
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
