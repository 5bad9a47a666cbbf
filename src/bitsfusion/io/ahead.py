"""Work on threads, a little ahead of its consumer."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(
    work: Callable[[Item], Made], items: Iterable[Item], threads: int, most: int | None = None
) -> Generator[Made, None, None]:
    """`work` of every item, in order.

    Args:
        work: what it raises is raised when its result is asked for.
        items: read no further than there is work begun.
        threads: calls at the same time, at most as many as there are cores.
        most: results that are begun before they are asked for; as many as there are threads unless given.
    """
    threads = min(threads, cores())
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="bitsfusion") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > (threads if most is None else most):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for result in waiting:
                result.cancel()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
