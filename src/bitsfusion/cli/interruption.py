"""Ctrl-C: what a command says when its user ends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """The user has ended a command; its message is the line to print. The exit code is 130."""


@contextmanager
def resumable() -> Iterator[None]:
    """Around work that the same command takes up again: Ctrl-C says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues from here") from None
