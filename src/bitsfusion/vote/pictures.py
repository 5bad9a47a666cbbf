"""Pictures and their prompts from a folder, and the pairs that two folders make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_file
from bitsfusion.io.pictures import read_pictures
from bitsfusion.vote.prompts import Topic

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """A file inside its folder, and what it held when it was read: `path` has no links in it."""

    path: Path
    media_type: str
    sha256: str


@dataclass(frozen=True)
class Pair:
    """One prompt with both folders' pictures of it."""

    prompt: str
    topic: Topic
    a: Picture
    b: Picture


@dataclass(frozen=True)
class Study:
    """What is compared.

    Fields:
        names: of the two folders, as results show them; voters never see them.
        pairs: in the order of the first folder.
        left_out: how many pictures of A and of B have no counterpart, or a prompt that was not asked for.
    """

    names: tuple[str, str]
    pairs: tuple[Pair, ...]
    left_out: tuple[int, int]


def read_study(a: Path, b: Path, topics: Mapping[str, Topic] | None = None) -> Study:
    """The pairs of two folders. The n-th picture of a prompt in A goes with the n-th of that prompt in B.

    Args:
        a, b: as `io.pictures` reads them.
        topics: where given, prompts that it does not have are left out.

    Raises:
        InputError: no such folder, a picture that is missing, is none or lies outside, or no prompt in common.
    """
    sides: list[dict[tuple[str, int], Path]] = []
    counts = []
    for folder in (a, b):
        numbered: dict[tuple[str, int], Path] = {}
        seen: dict[str, int] = {}
        for picture in read_pictures(Path(folder)):
            prompt = picture.prompt
            seen[prompt] = seen.get(prompt, 0) + 1
            if topics is None or prompt in topics:
                numbered[prompt, seen[prompt]] = picture.path
        counts.append(sum(seen.values()))
        sides.append(numbered)
    common = [key for key in sides[0] if key in sides[1]]
    if not common:
        wanted = "prompts in common" if topics is None else "prompts of the TSV in common"
        raise InputError(f"{a} and {b}: got {counts[0]} and {counts[1]} pictures, wanted {wanted}")
    pairs = tuple(
        Pair(key[0], (topics or {}).get(key[0], Topic()), *(_picture(side[key]) for side in sides)) for key in common
    )
    return Study(_names(Path(a), Path(b)), pairs, (counts[0] - len(common), counts[1] - len(common)))


def _picture(path: Path) -> Picture:
    try:
        with Image.open(path, formats=list(MEDIA_TYPES)) as image:
            image.load()  # half a file has a whole header
            return Picture(path, MEDIA_TYPES[str(image.format)], sha256_file(path))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise InputError(f"{path}: wanted a PNG, JPEG or WebP picture") from None


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The shortest ends of both paths that differ."""
    parts = [path.resolve().parts for path in (a, b)]
    if parts[0] == parts[1]:
        raise InputError(f"{a}: got the same folder twice, wanted two models' pictures")
    for length in range(1, max(map(len, parts)) + 1):
        ends = tuple("/".join(part[-length:]) for part in parts)
        if ends[0] != ends[1]:
            break
    return ends[0], ends[1]
