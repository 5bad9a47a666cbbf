"""What long work reports as it runs; the library itself prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


def silent(done: int, total: int) -> None:
    """Ignores the progress."""


class ProgressSink:
    """Takes reports of named steps and does nothing with them; the command line draws them."""

    def update(self, step: str, done: int, total: int, note: str = "") -> None:
        """`step` has done `done` of `total` units; `note` is a short figure to show beside it."""

    def finish(self, step: str, seconds: float | None) -> None:
        """`step` is done: in `seconds`, or None if it was done before."""

    def step(self, name: str) -> Progress:
        """A `Progress` that reports to this sink under a name."""
        return partial(self.update, name)

    def training(self, name: str) -> Callable[[int, int, Mapping[str, float]], None]:
        """The same for a training, whose loss stands beside its steps."""
        return lambda done, total, metrics: self.update(name, done, total, f"loss {metrics['loss']:.4f}")

    @contextmanager
    def timed(self, name: str) -> Iterator[Progress]:
        """The same; the step is finished at the end."""
        started = time.monotonic()
        yield self.step(name)
        self.finish(name, time.monotonic() - started)


SILENT = ProgressSink()
