"""Pictures and their prompts from a folder, and the pairs that two folders make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from bitsfusion.errors import InputError
from bitsfusion.files import sha256_file
from bitsfusion.vote.prompts import Topic

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
METADATA = "metadata.jsonl"


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
        a, b: what `bitsfusion generate` writes (pictures and metadata.jsonl), or GenEval's tree
            (00000/metadata.jsonl, 00000/samples/0000.png).
        topics: where given, prompts that it does not have are left out.

    Raises:
        InputError: no such folder, a picture that is missing, is none or lies outside, or no prompt in common.
    """
    sides: list[dict[tuple[str, int], Path]] = []
    counts = []
    for folder in (a, b):
        numbered: dict[tuple[str, int], Path] = {}
        seen: dict[str, int] = {}
        for prompt, path in _pictures(Path(folder)):
            seen[prompt] = seen.get(prompt, 0) + 1
            if topics is None or prompt in topics:
                numbered[prompt, seen[prompt]] = path
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


def _pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every picture's prompt and path, links followed, in the order of the metadata."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, wanted pictures and {METADATA}")
    if (folder / METADATA).is_file():
        for where, line in _lines(folder / METADATA):
            prompt, name = line.get("text", line.get("prompt")), line.get("file_name")
            if not isinstance(prompt, str) or not isinstance(name, str):
                raise InputError(f'{where}: wanted {{"file_name": ..., "text": ...}}, got {str(line)[:80]}')
            yield prompt.strip(), _inside(folder, folder / name, where)
        return
    trees = sorted(path for path in folder.iterdir() if path.is_dir() and (path / METADATA).is_file())
    if not trees:
        raise InputError(
            f"{folder}: wanted {METADATA} with pictures, or GenEval's folders 00000, 00001 ...; got neither"
        )
    for tree in trees:
        where, line = next(_lines(tree / METADATA), (str(tree / METADATA), {}))
        if not isinstance(line.get("prompt"), str):
            raise InputError(f'{where}: wanted {{"prompt": ...}}, got {str(line)[:80]}')
        for path in sorted((tree / "samples").glob("*.png")):
            yield line["prompt"].strip(), _inside(folder, path, str(tree))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line is, and the object that it holds."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: wanted lines of JSON, got {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: wanted JSON, got {error}") from None
            yield f"{path}, line {number}", value if isinstance(value, dict) else {}


def _inside(folder: Path, path: Path, where: str) -> Path:
    """`path` without links, which has to lie below `folder`."""
    real = path.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise InputError(f"{where}: got {path.name!r}, which lies outside {folder}; wanted a picture in it")
    if not real.is_file():
        raise InputError(f"{where}: {path}: no such picture")
    return real


def _picture(path: Path) -> Picture:
    try:
        with Image.open(path, formats=list(MEDIA_TYPES)) as image:
            return Picture(path, MEDIA_TYPES[str(image.format)], sha256_file(path))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
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
