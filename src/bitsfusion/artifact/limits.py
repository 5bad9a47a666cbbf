"""What a packed folder may ask for at most: read before anything is built or allocated. Listed in docs/format.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitsfusion.errors import ArtifactError

JSON_BYTES = 4 << 20
"""config.json, an index of shards, a safetensors header: each at most that long."""

JSON_DEPTH = 32
MEMORY_FLOOR, MEMORY_RATIO = 1 << 30, 64
"""What weight files decode to takes at most a GiB and 64 times their size: trained weights give 1 to 8 times."""

MODEL_NUMBER = 1 << 20
"""The largest integer in a model's config: no width, depth or count is larger. Bases of rotary embeddings may be."""

MODEL_MODULES = 10_000
"""SDXL's UNet has 1,930, Qwen-Image's transformer 2,297."""


def shown(text: object, limit: int = 300) -> str:
    """Text from a file as one printable line, for an error message."""
    line = " ".join(str(text).split())
    line = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in line)
    return line if len(line) <= limit else line[:limit] + "..."


def check_model_config(value: Any, where: str = "config.json", depth: int = 0) -> None:
    """Refuses numbers and nesting that no model has, at any depth of a model's config.

    Raises:
        ArtifactError: names the key.
    """
    if depth > JSON_DEPTH:
        raise ArtifactError(f"{where}: got more than {JSON_DEPTH} levels of nesting")
    if isinstance(value, int) and abs(value) > MODEL_NUMBER:
        raise ArtifactError(f"{where}: got a number of {value.bit_length()} bits, wanted at most {MODEL_NUMBER}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if str(key).endswith("rope_theta") and isinstance(item, (int, float)):
                continue
            check_model_config(item, f"{where}: {shown(key, 80)}" if depth == 0 else where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_model_config(item, where, depth + 1)


def check_memory(decoded: int, stored: int) -> None:
    """Refuses files that decode to far more memory than their size justifies, before any is allocated.

    Args:
        decoded: bytes that the tensors take once decoded.
        stored: bytes that they take in the files.

    Raises:
        ArtifactError: they do.
    """
    allowed = MEMORY_FLOOR + MEMORY_RATIO * stored
    if decoded > allowed:
        raise ArtifactError(
            f"weights: got {decoded} bytes in memory from {stored} in the files, wanted at most {allowed}"
        )
