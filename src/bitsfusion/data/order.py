"""The order in which samples are trained on: seeded epochs, each a fresh permutation, indexed by place alone."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


class EpochOrder:
    """An endless sequence over `count` samples: epoch after epoch, every sample once in each, in a new order.

    A pure function of (seed, place): nothing to save, nothing to skip on resuming.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([self._seed, epoch]).permutation(self._count)

    def indices(self, step: int, rank: int, world_size: int, size: int) -> list[int]:
        """The samples of process `rank` of `world_size` at `step`, `size` for each process.

        The processes' samples side by side are what one process would get with `size` x `world_size`.
        """
        first = (step * world_size + rank) * size
        places = (divmod(place, self._count) for place in range(first, first + size))
        return [int(self._epoch(epoch)[within]) for epoch, within in places]
