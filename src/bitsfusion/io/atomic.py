"""Files and folders written whole or not at all, whatever kills the writer."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from bitsfusion.errors import BitsFusionError
from bitsfusion.io.locks import Lock, try_lock, wait_for_lock

_PARTIAL, _OLD, _LOCK = ".partial", ".old", ".lock"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of file `path` to write to; renamed onto it on success, removed on failure.

    Behind a link, the file that it leads to is written. After a loss of power it is the old one or the new one; a
    killed writer may leave `.NAME.*.partial` beside it.

    Raises:
        BitsFusionError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    with _writing(Path(path)) as target:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder to fill; on success it takes the place of folder `path` as a whole.

    The two exchange their names in one step where the system can (Linux, macOS, most local file systems): a kill or
    a loss of power at any moment leaves the old folder or the new one under `path`. Elsewhere there is a moment at
    which the old one is called `.NAME.*.old`; the next writer of `path` brings it back. What a killed writer left
    (`.NAME.*.partial`) is removed by the next one too.

    Raises:
        BitsFusionError: the disk is full or the folder cannot be written; nothing was changed.
    """
    with _writing(Path(path)) as target, _claimed(target) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        with _changing(target):
            _take_place(temporary, target)
        with contextlib.suppress(OSError):  # the rename is done: too late for an error
            _sync(target.parent)


def _take_place(temporary: Path, target: Path) -> None:
    """Puts the temporary folder where the old one is, if there is one, and the old one out of the way."""
    if not os.path.lexists(target):
        os.rename(temporary, target)
    elif not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    elif not _exchange(temporary, target):
        retired = temporary.with_suffix(_OLD)
        os.rename(target, retired)
        try:
            os.rename(temporary, target)
        except OSError:
            os.rename(retired, target)
            raise
        shutil.rmtree(retired, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Two folders' names change places in one step; False where the system or the file system cannot."""
    if os.name == "nt":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        failed = libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), 2)  # RENAME_EXCHANGE
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(os.fsencode(one), os.fsencode(other), 2)  # RENAME_SWAP
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[Path]:
    """A new temporary folder beside `path`, locked for as long as its writer lives, and removed afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _changing(path):
        _sweep(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent))
        alive = try_lock(_lock_of(temporary))
    try:
        yield temporary
    finally:
        _remove(temporary)
        if alive is not None:
            alive.close()


def _changing(path: Path) -> Lock:
    """One process at a time claims, sweeps and renames beside `path`."""
    return wait_for_lock(path.with_name(f".{path.name}{_LOCK}"))


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + _LOCK)


def _sweep(path: Path) -> None:
    """Removes what dead writers of `path` left beside it; an old folder without a new one is brought back."""
    for left in _leftovers(path):
        if left.suffix == _LOCK:
            left = left.with_suffix("")  # of a temporary folder that is there or gone
        if left.suffix == _OLD and not os.path.lexists(path):
            os.rename(left, path)
            continue
        dead = try_lock(_lock_of(left))
        if dead is not None:
            with dead:
                if dead.held:
                    _remove(left)


def _leftovers(path: Path) -> list[Path]:
    """Everything beside `path` that a writer of it may have left."""
    own = re.escape(path.name)
    pattern = re.compile(rf"\.{own}\.[a-z0-9_]{{8}}({re.escape(_PARTIAL)}({re.escape(_LOCK)})?|{re.escape(_OLD)})")
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    return [left for left in beside if pattern.fullmatch(left.name) is not None and not left.is_symlink()]


def remove_leftovers(path: Path) -> None:
    """Removes what killed writers of file or folder `path` left beside it (`.NAME.*.partial`); for its only writer.

    `atomic_folder` does so by itself; `atomic_path` does not look, for there may be many files beside its own.
    """
    for left in _leftovers(Path(path)):
        if left.suffix != _OLD:
            _remove(left)


def remove_all_leftovers(folder: Path) -> None:
    """The same for every file and folder below `folder`; for a process that has it to itself."""
    pattern = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_PARTIAL)}({re.escape(_LOCK)})?")
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if pattern.fullmatch(name) is not None and not Path(parent, name).is_symlink():
                _remove(Path(parent, name))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk; Windows opens neither for that."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yields `path` with its links followed; what the system refuses is one line."""
    try:
        yield Path(os.path.realpath(path))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BitsFusionError(f"{path}: could not be written ({reason}); nothing was changed") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
