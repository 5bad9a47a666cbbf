"""Where captioned images come from: sources of records in a fixed order, and what is wrong with a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bitsfusion.errors import BitsFusionError

_LONGEST_CAPTION = 20_000


class BadSampleError(BitsFusionError):
    """An image or caption that cannot be used; the message says why, the record has the name."""


@dataclass(frozen=True)
class Record:
    """One image with its caption, not read yet.

    name: for messages. load: reads the image file's bytes and the caption, as the source has them; may raise
    `BadSampleError`.
    """

    name: str
    load: Callable[[], tuple[Any, Any]]


class ImageSource(Protocol):
    """Captioned images in parts that can be read independently, each in a fixed order."""

    @property
    def title(self) -> str:
        """What messages call the source: a folder, a dataset's name, shards."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the data may have changed."""
        ...

    @property
    def parts(self) -> int:
        """The number of parts."""
        ...

    @property
    def records(self) -> int | None:
        """The number of records in all parts together; None if it is not known before reading."""
        ...

    def read(self, part: int, start: int) -> Iterator[Record]:
        """The records of a part, from its `start`-th on."""
        ...


def caption_text(value: Any) -> str:
    """The caption that `value` holds: a text, UTF-8 bytes, or the first of a list of these.

    Raises:
        BadSampleError: something else, blank, or so long that it is hardly a caption.
    """
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise BadSampleError("caption is not UTF-8") from None
    if value is None or value == []:
        raise BadSampleError("no caption")
    if not isinstance(value, str):
        raise BadSampleError(f"caption is of type {type(value).__name__}, wanted text")
    text = value.strip()
    if not text:
        raise BadSampleError("caption is empty")
    if len(text) > _LONGEST_CAPTION:
        raise BadSampleError(f"caption has {len(text)} characters, wanted at most {_LONGEST_CAPTION}")
    return text
