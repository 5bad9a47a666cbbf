"""The order of samples: epochs are permutations, and the number of processes does not matter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitsfusion.data.drawn import DrawnData
from bitsfusion.data.order import EpochOrder


@given(count=st.integers(1, 40), seed=st.integers(0, 9), world=st.integers(1, 4), size=st.integers(1, 7))
def test_every_epoch_has_every_sample_once(count, seed, world, size):
    order = EpochOrder(count, seed)
    steps = -(-3 * count // (world * size))
    drawn = [i for step in range(steps) for rank in range(world) for i in order.indices(step, rank, world, size)]
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(step=st.integers(0, 10**6), world=st.sampled_from([1, 2, 3, 4, 6, 12]), count=st.integers(1, 30))
def test_the_processes_batches_side_by_side_are_one_process_s(step, world, count):
    order, fresh = EpochOrder(count, 5), EpochOrder(count, 5)
    parts = [order.indices(step, rank, world, 12 // world) for rank in range(world)]
    assert [index for part in parts for index in part] == fresh.indices(step, 0, 1, 12)


def test_epochs_and_seeds_differ():
    order = EpochOrder(50, 0)
    first, second = order.indices(0, 0, 1, 50), order.indices(1, 0, 1, 50)
    assert first != second and first != list(range(50)) and first != EpochOrder(50, 1).indices(0, 0, 1, 50)


def test_the_world_is_drawn_by_place_too(vae, conditioner):
    data = DrawnData(vae, conditioner, seed=3, pool=40)
    whole = data.batch(5, 0, 1, 12).names
    assert whole == data.batch(5, 0, 2, 6).names + data.batch(5, 1, 2, 6).names
    assert whole == sum((data.batch(5, rank, 4, 3).names for rank in range(4)), ())
