"""Captioned images in a folder: Hugging Face's imagefolder with a metadata.jsonl of {"file_name", "text"}."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitsfusion.data.records import BadSampleError, Record
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.texts import json_lines

_PART = 512


class ImageFolder:
    """The images listed in `folder`/metadata.jsonl, in its order; see `ImageSource`.

    Raises:
        InputError: there is no metadata.jsonl, a line is not an object with a file_name (more keys are ignored), a
            file_name leads out of the folder, or there are none. A missing image or caption is a bad sample.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        listing = self._folder / "metadata.jsonl"
        if not listing.is_file():
            raise InputError(f"{listing}: no such file, wanted one line of {{file_name, text}} for each image")
        root = self._folder.resolve()
        self._entries = [self._entry(entry, where, root) for where, entry in json_lines(listing, "lines of JSON")]
        if not self._entries:
            raise InputError(f"{listing}: lists no images")
        self.title = str(folder)
        self.parts = -(-len(self._entries) // _PART)
        self.records = len(self._entries)

    def _entry(self, entry: Any, where: str, root: Path) -> tuple[str, Any]:
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise InputError(f'{where}: wanted {{"file_name": text, "text": text}}, got {str(entry)[:120]}')
        name = entry["file_name"]
        if "\0" in name or not (self._folder / name).resolve().is_relative_to(root):
            raise InputError(f"{where}: file_name {name!r} points outside the folder")
        return name, entry.get("text")

    @functools.cached_property
    def identity(self) -> str:
        """A hash of names, captions, and the files' sizes and times of change."""
        return sha256_json(["imagefolder", str(self._folder.resolve()), [self._state(*one) for one in self._entries]])

    def _state(self, name: str, text: Any) -> list[Any]:
        try:
            status = (self._folder / name).stat()
        except OSError:
            return [name, text]
        return [name, text, status.st_size, status.st_mtime_ns]

    def read(self, part: int, start: int) -> Iterator[Record]:
        """The records of a part, from its `start`-th on."""
        for name, text in self._entries[part * _PART + start : (part + 1) * _PART]:
            yield Record(name, functools.partial(self._load, name, text))

    def _load(self, name: str, text: Any) -> tuple[bytes, Any]:
        try:
            return (self._folder / name).read_bytes(), text
        except OSError as error:
            raise BadSampleError(f"image cannot be read: {error.strerror}") from None
