"""What an export says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitsfusion.errors import InputError

Progress = Callable[[int, int], None]
"""Called with the layers done and the layers in all."""


@dataclass(frozen=True)
class Share:
    """What is stored in one number format.

    Fields:
        type: its name, as the format calls it.
        tensors, weights, bytes: how many.
        exact: whether every value is that of the packed folder, bit for bit.
    """

    type: str
    tensors: int
    weights: int
    bytes: int
    exact: bool


@dataclass(frozen=True)
class Exported:
    """An export that was written.

    Fields:
        path: the file or folder.
        target: what it is: dense, gguf, onnx, web.
        bytes: of all its files.
        shares: where the weights' bytes are.
        notes: what a user should know, in plain words.
    """

    path: Path
    target: str
    bytes: int
    shares: tuple[Share, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"path": str(self.path)}


class Tally:
    """Counts tensors by the format they are stored in, and in how many a value was rounded."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}

    def add(self, type: str, weights: int, bytes: int, exact: bool = True) -> None:
        """One tensor."""
        found = self._found.setdefault(type, [0, 0, 0, 0])
        for place, number in enumerate((1, weights, bytes, 0 if exact else 1)):
            found[place] += number

    def shares(self) -> tuple[Share, ...]:
        """Most bytes first."""
        made = [
            Share(type, tensors, weights, bytes, exact=not rounded)
            for type, (tensors, weights, bytes, rounded) in self._found.items()
        ]
        return tuple(sorted(made, key=lambda share: (-share.bytes, share.type)))


def written(path: Path, target: str, tally: Tally, notes: Iterable[str]) -> Exported:
    """The account of a finished file or folder."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return Exported(path, target, sum(file.stat().st_size for file in files), tally.shares(), tuple(notes))


def check_new_folder(out: Path) -> None:
    """Raises InputError where something would be replaced."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"out: got {out}, which is there, wanted a new or an empty folder")


def check_choice(name: str, got: str, choices: Mapping[str, Any]) -> None:
    """Raises InputError for what is none of the choices."""
    if got not in choices:
        raise InputError(f"{name}: got {got!r}, wanted {', '.join(choices)}")
