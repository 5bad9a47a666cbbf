"""The samples of a step made while the device works on the step before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


@contextlib.contextmanager
def one_ahead(make: Callable[[int], Made], first: int, end: int) -> Iterator[Iterator[Made]]:
    """`make(step)` for every step from `first` to `end` - 1, in order; the next one is made in a thread meanwhile.

    Args:
        make: a function of the step alone; at most one call of it runs at a time. What it raises is raised when its
            step is asked for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="samples") as pool:

        def samples() -> Iterator[Made]:
            waiting = pool.submit(make, first) if first < end else None
            for step in range(first, end):
                assert waiting is not None
                made = waiting.result()
                waiting = pool.submit(make, step + 1) if step + 1 < end else None
                yield made

        yield samples()
