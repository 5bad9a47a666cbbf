"""What long work reports while it goes on; the library itself prints nothing."""

from __future__ import annotations


class ProgressSink:
    """Takes reports and does nothing; the command line draws them."""

    def update(self, step: str, done: int, total: int, note: str = "") -> None:
        """`step` has done `done` of `total` units; `note` is a short figure to show beside it."""

    def finish(self, step: str, seconds: float | None) -> None:
        """`step` is done: in `seconds`, or None if it was done before."""
