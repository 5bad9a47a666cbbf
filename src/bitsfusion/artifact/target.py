"""What a new packed folder may replace: nothing, an empty folder, or a packed one without other files in it."""

from __future__ import annotations

import re
from pathlib import Path

from bitsfusion.artifact.container import read_object
from bitsfusion.artifact.reader import holds_packed_tensors
from bitsfusion.artifact.schema import CONFIG_FILE, QUANT_METHOD
from bitsfusion.errors import ArtifactError, InputError
from bitsfusion.pipelines.folder import INDEX
from bitsfusion.pipelines.resolve import HASHES_FILE
from bitsfusion.pipelines.weight_files import is_weight_file


def check_target(folder: Path) -> None:
    """Refuses to replace other files: a typing error must not cost a home folder, the source model, or notes beside it.

    Raises:
        InputError: the folder holds something that would be lost.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: got a file, wanted a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    parts = _parts(folder)
    if not any(_is_packed(place) for place in (folder, *(folder / name for name in parts))):
        raise InputError(f"{folder}: got a folder with other files, wanted a new, empty or packed one")
    for entry in sorted(folder.iterdir()):
        if entry.name not in parts and not is_weight_file(entry.name):
            raise InputError(
                f"{folder}: got a folder with other files ({entry.name}) beside a packed model, wanted them elsewhere: "
                "it is replaced as a whole"
            )


def _parts(folder: Path) -> set[str]:
    """The names of all that a packed model or pipeline folder consists of."""
    if not (folder / INDEX).is_file():
        return {CONFIG_FILE}
    try:
        index = read_object(folder / INDEX)
    except ArtifactError:
        index = {}
    return {INDEX, HASHES_FILE, *(name for name in index if re.fullmatch(r"[A-Za-z0-9_]+", name))}


def _is_packed(folder: Path) -> bool:
    """Whether there is a packed model, be it a broken one."""
    if not folder.is_dir():
        return False
    try:
        packed = read_object(folder / CONFIG_FILE).get("quantization_config")
    except ArtifactError:
        return holds_packed_tensors(folder)
    return isinstance(packed, dict) and packed.get("quant_method") == QUANT_METHOD
