import itertools
import random
from collections import Counter

import pytest

from bitsfusion.embedded.grid import GRID
from bitsfusion.embedded.world import Object, fits
from bitsfusion.errors import InputError

SPLITS = ("train", "validation", "test")


def prompt_of(tag, body):
    return next(p for split in SPLITS for p in GRID.all_prompts(tag, split) if p.text.endswith(body))


@pytest.mark.parametrize("tag", GRID.tasks)
def test_sampled_scenes_fit_their_prompts(tag):
    rng = random.Random(0)
    for prompt in rng.choices(GRID.all_prompts(tag, "train"), k=300):
        assert fits(prompt, GRID.sample_scene(prompt, rng))


def test_captions_of_other_scenes_mostly_do_not_fit():
    rng = random.Random(1)
    prompts = [GRID.sample_prompt(rng) for _ in range(1000)]
    scenes = [GRID.sample_scene(prompt, rng) for prompt in prompts]
    right = sum(fits(prompt, scene) for prompt, scene in zip(prompts, scenes[1:] + scenes[:1], strict=True))
    assert right <= 40


def test_one_object_more_one_fewer_or_another_breaks_the_fit():
    rng = random.Random(2)
    for _ in range(500):
        prompt = GRID.sample_prompt(rng)
        scene = GRID.sample_scene(prompt, rng)
        free = rng.choice(sorted(set(range(16)) - {item.cell for item in scene}))
        assert not fits(prompt, (*scene, Object(rng.choice(["ring", "circle"]), "red", "small", free)))
        assert not fits(prompt, scene[1:])
        assert not fits(prompt, (Object("unreadable", "red", "small", scene[0].cell), *scene[1:]))


@pytest.mark.parametrize("tag", GRID.tasks)
def test_splits_share_no_caption_and_leave_none_out(tag):
    texts = [{prompt.text for prompt in GRID.all_prompts(tag, split)} for split in SPLITS]
    assert all(texts) and not any(a & b for a, b in itertools.combinations(texts, 2))
    assert sum(map(len, texts)) == sum(len(GRID.all_prompts(tag, split)) for split in SPLITS)


def test_counting_goes_to_six():
    prompts = [prompt for split in SPLITS for prompt in GRID.all_prompts("counting", split)]
    kinds = Counter(p.include[0].count for p in prompts if len(p.include) == 1)
    assert set(kinds) == {2, 3, 4, 5, 6} and len(set(kinds.values())) == 1
    assert {sum(need.count for need in p.include) for p in prompts if len(p.include) == 2} == {3, 4, 5, 6}


@pytest.mark.parametrize(
    ("tag", "easy"),
    [
        ("counting", lambda p: len(p.include) == 1),
        ("colors", lambda p: p.include[0].count == 1),
        ("three_object", lambda p: p.include[0].color is None),
        ("size", lambda p: p.include[0].color is None),
    ],
)
def test_families_come_up_equally_often(tag, easy):
    asked = [prompt for prompt in GRID.prompt_set("test", 30) if prompt.tag == tag]
    assert sum(map(easy, asked)) == 15
    rng = random.Random(4)
    drawn = [prompt for prompt in (GRID.sample_prompt(rng) for _ in range(4000)) if prompt.tag == tag]
    assert 0.4 < sum(map(easy, drawn)) / len(drawn) < 0.6


@pytest.mark.parametrize(
    ("relation", "cells", "holds"),
    [
        ("left of", (0, 3), True),
        ("left of", (3, 0), False),
        ("left of", (0, 4), False),
        ("above", (0, 12), True),
        ("below", (0, 12), False),
        ("right of", (13, 0), True),
        ("below", (13, 0), True),
    ],
)
def test_relations(relation, cells, holds):
    prompt = prompt_of("position", f"a circle {relation} a square")
    scene = Object("circle", "red", "small", cells[0]), Object("square", "blue", "large", cells[1])
    assert fits(prompt, scene) is holds


def test_sizes_and_colours_belong_to_their_shapes():
    scene = Object("circle", "red", "small", 2), Object("square", "blue", "large", 9)
    assert fits(prompt_of("size", "a small circle and a large square"), scene)
    assert not fits(prompt_of("size", "a large circle and a small square"), scene)
    assert fits(prompt_of("color_attr", "a blue square and a red circle"), scene)
    assert not fits(prompt_of("color_attr", "a red square and a blue circle"), scene)


def test_prompt_set_and_metadata():
    prompts = GRID.prompt_set("test", 9)
    assert [prompt.tag for prompt in prompts] == [tag for tag in GRID.tasks for _ in range(9)]
    position = prompt_of("position", "a ring above a cross")
    assert position.metadata() == {
        "tag": "position",
        "include": [{"class": "cross", "count": 1}, {"class": "ring", "count": 1, "position": ["above", 0]}],
        "prompt": position.text,
    }
    size = prompt_of("size", "a small circle and a large ring").metadata()
    assert size["include"] == [
        {"class": "circle", "count": 1, "size": "small"},
        {"class": "ring", "count": 1, "size": "large"},
    ]


def test_captions_are_english():
    texts = [p.text for tag in GRID.tasks for split in SPLITS for p in GRID.all_prompts(tag, split)]
    assert not any(" a orange" in f" {text}" or "crosss" in text for text in texts)
    assert "an orange ring" in texts and "three crosses" in texts and "a ring, a cross and a circle" in texts
    assert "two circles and a ring" in texts and "three red crosses" in texts


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="wanted one of single_object"):
        GRID.all_prompts("colour", "train")
    with pytest.raises(InputError, match="wanted train, validation or test"):
        GRID.all_prompts("colors", "dev")
