"""Locks between processes, by files that go when the lock does; the system frees those of a process that dies."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without locks answer."""


class Lock:
    """A lock that this process holds until `close` or the end of a `with` block."""

    def __init__(self, path: Path, held: FileLock | None) -> None:
        """Use `try_lock` or `wait_for_lock`; `held` is None on a file system without locks."""
        self._path, self._held = path, held

    @property
    def held(self) -> bool:
        """Whether it keeps anybody out: False on a file system without locks, and once it is closed."""
        return self._held is not None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back and removes its file. Idempotent."""
        held, self._held = self._held, None
        if held is None:
            return
        with contextlib.suppress(OSError):  # while it is held, so that nobody else's goes; Windows lets it stay
            self._path.unlink()
        held.release()


def try_lock(path: Path) -> Lock | None:
    """The lock on file `path`, made if need be; None where another process (or another call in this one) holds it.

    On a file system without locks every caller gets one.

    Raises:
        OSError: the file cannot be made.
    """
    return _acquire(path, blocking=False)


def wait_for_lock(path: Path) -> Lock:
    """The same after waiting until it is free."""
    lock = _acquire(path, blocking=True)
    assert lock is not None
    return lock


def _acquire(path: Path, blocking: bool) -> Lock | None:
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=blocking)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return Lock(path, None)
    return Lock(path, lock)
