import itertools
import random

import numpy as np
import pytest

from bitsfusion.embedded.grid import GRID
from bitsfusion.embedded.world import BACKGROUND, CELLS, IMAGE_SIZE, UNREADABLE, Object
from bitsfusion.errors import InputError


def random_scene(rng, count):
    cells = sorted(rng.sample(range(CELLS), count))
    return tuple(
        Object(rng.choice(GRID.shapes), rng.choice(list(GRID.colors)), rng.choice(GRID.sizes), cell) for cell in cells
    )


def noisy(image, noise, spread):
    return np.clip(np.rint(image + noise.normal(0, spread, image.shape)), 0, 255).astype(np.uint8)


def test_every_object_is_read_exactly():
    for cell, (shape, color, size) in enumerate(itertools.product(GRID.shapes, GRID.colors, GRID.sizes)):
        scene = (Object(shape, color, size, cell % CELLS),)
        assert GRID.read(GRID.draw(scene)) == scene


@pytest.mark.parametrize("count", range(CELLS + 1))
def test_scenes_of_any_number_are_read_exactly(count):
    rng = random.Random(count)
    for _ in range(20):
        scene = random_scene(rng, count)
        assert GRID.read(GRID.draw(scene)) == scene


def test_the_reader_reads_through_noise():
    rng, noise = random.Random(0), np.random.default_rng(0)
    scenes = [random_scene(rng, rng.randrange(7)) for _ in range(200)]
    assert sum(GRID.read(noisy(GRID.draw(scene), noise, 12)) == scene for scene in scenes) >= 198


def test_a_little_noise_alone_is_nothing():
    ground = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), BACKGROUND, dtype=np.uint8)
    assert GRID.read(noisy(ground, np.random.default_rng(1), 10)) == ()


def test_a_blob_that_is_no_shape_is_unreadable():
    image = GRID.draw((Object("circle", "red", "large", 5),))
    image[40:44, 4:30] = (200, 10, 200)
    assert {item.shape for item in GRID.read(image)} == {"circle", UNREADABLE}


def test_half_of_each_of_two_shapes_is_unreadable():
    square, cross = (GRID.draw((Object(shape, "white", "large", 5),)) for shape in ("square", "cross"))
    blend = ((square.astype(int) + cross) // 2).astype(np.uint8)
    half = np.concatenate([square[:24], cross[24:]])
    assert [item.shape for item in GRID.read(half)] == [UNREADABLE]
    assert [(item.shape, item.color) for item in GRID.read(blend)] != [("square", "white")]


def test_a_shape_between_two_cells_is_unreadable():
    image = np.roll(GRID.draw((Object("square", "blue", "large", 5),)), 6, axis=1)
    assert [item.shape for item in GRID.read(image)] == [UNREADABLE]


def test_a_colour_without_a_name_is_unreadable():
    image = GRID.draw((Object("square", "white", "large", 0),))
    image[(image == 240).all(axis=-1)] = (130, 130, 130)
    assert GRID.read(image) == (Object("square", UNREADABLE, "large", 0),)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"got \[32, 32, 3\], wanted \[64, 64, 3\]"):
        GRID.read(np.zeros((32, 32, 3), dtype=np.uint8))
