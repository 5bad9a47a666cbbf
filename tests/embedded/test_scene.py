import itertools

import numpy as np
import pytest

from bitsfusion.embedded.grid import GRID
from bitsfusion.embedded.world import BACKGROUND, CELL_SIZE, CELLS, Object
from bitsfusion.errors import InputError


def test_an_object_is_drawn_in_its_cell_alone():
    for cell in range(CELLS):
        item = Object("ring", "cyan", "large", cell)
        changed = np.argwhere((GRID.draw((item,)) != BACKGROUND).any(axis=-1))
        assert set(map(tuple, changed // CELL_SIZE)) == {(item.row, item.column)}


def test_neighbours_never_touch():
    for name in itertools.product(GRID.shapes, GRID.sizes):
        mask = GRID.mask(*name)
        assert mask.max() == 1
        assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()


def test_a_large_shape_covers_more_than_twice_a_small_one():
    for shape in GRID.shapes:
        assert GRID.mask(shape, "large").sum() > 2 * GRID.mask(shape, "small").sum()


def test_the_order_of_objects_changes_nothing():
    scene = tuple(
        Object(shape, color, "small", cell)
        for cell, (shape, color) in enumerate(zip(GRID.shapes, GRID.colors, strict=False))
    )
    assert (GRID.draw(scene) == GRID.draw(scene[::-1])).all()


@pytest.mark.parametrize(
    "scene",
    [
        (Object("heart", "red", "small", 0),),
        (Object("ring", "mauve", "small", 0),),
        (Object("ring", "red", "huge", 0),),
        (Object("ring", "red", "small", 16),),
        (Object("ring", "red", "small", 3), Object("cross", "red", "small", 3)),
    ],
)
def test_what_the_world_does_not_have_is_refused(scene):
    with pytest.raises(InputError, match=r"got .*, wanted"):
        GRID.draw(scene)
