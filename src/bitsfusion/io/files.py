"""Files written whole or not at all, and the hashes that tie one step's output to the next one's input."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from bitsfusion.errors import BitsFusionError, InputError

_PARTIAL, _OLD = ".partial", ".old"


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
        with _locked(target.parent):
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
    with _locked(path.parent):
        _sweep(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent))
        handle = os.open(temporary, os.O_RDONLY)
        _lock(handle)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _sweep(path: Path) -> None:
    """Removes what dead writers of `path` left beside it; an old folder without a new one is brought back."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}({re.escape(_PARTIAL)}|{re.escape(_OLD)})")
    for left in sorted(path.parent.iterdir()):
        if pattern.fullmatch(left.name) is None or left.is_symlink():
            continue
        if left.suffix == _OLD and not os.path.lexists(path):
            os.rename(left, path)
            continue
        try:
            handle = os.open(left, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if _lock(handle):
                _remove(left)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(handle: int, wait: bool = False) -> bool:
    """Whether this process now holds the lock on an open file or folder; a killed process holds none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another, or a file system without locks
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time claims, sweeps and renames in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
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


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted a JSON file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: wanted a JSON file, got {error}") from None


def read_lines(path: Path, wanted: str) -> list[str]:
    """The lines of a UTF-8 text file, without a byte order mark. Nothing but a line feed ends a line: texts may hold
    the other characters that `str.splitlines` takes for an end.

    Raises:
        InputError: there is no such file, or it is no such text; `wanted` says what it should have been.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: wanted {wanted}, got {error}") from None
    return lines if lines[-1] else lines[:-1]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of `value` as canonical JSON (sorted keys, no spaces), in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_folder(path: Path, without: Container[str] = ()) -> str:
    """The SHA-256 over the relative names and contents of every file below a folder, in hex; of its own files and
    folders, those named in `without` are passed over."""
    path = Path(path)
    files = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    kept = {name.as_posix(): file for name, file in files.items() if name.parts[0] not in without}
    return sha256_json({name: sha256_file(file) for name, file in kept.items()})


def folder_lock(folder: Path, file: Path) -> IO[str]:
    """Keeps other processes out of `folder` until what is returned is closed; makes both.

    Raises:
        InputError: it is a file, or another process holds the lock.
        BitsFusionError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: got a file, wanted a folder or a new name")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(file, "w")  # noqa: SIM115 (held until close)
    except OSError as error:
        raise BitsFusionError(f"{folder}: could not be written ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(f"{folder}: another process is working in this folder") from None
    return lock
