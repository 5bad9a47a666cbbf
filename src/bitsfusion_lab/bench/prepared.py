"""Folders that methods have quantized and saved, kept by the hash of what they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitsfusion.io.atomic import atomic_folder
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.texts import read_json, write_json
from bitsfusion_lab.bench.bench_file import Dtype
from bitsfusion_lab.bench.methods.base import Method
from bitsfusion_lab.bench.process import WorkerProcess

WAY = 1
"""Raised when a method's `prepare` changes, so that folders from before are not taken for its work."""


def prepared_folder(
    work: Path, method: Method, dtype: Dtype, threads: int, dense: Path, dense_sha256: str
) -> tuple[Path, dict[str, Any]]:
    """The method's own folder of the dense model, made in a fresh process unless it is there from before.

    Args:
        work: where such folders are kept.
        dense, dense_sha256: the dense model's folder and its hash.

    Returns:
        The folder, and `prepare_seconds` and `prepare_peak_rss` of when it was made.

    Raises:
        MethodFailed: the method could not.
    """
    identity = sha256_json([WAY, method.name, method.version(), method.settings, dtype.value, dense_sha256])
    folder = work / f"{method.name}-{identity[:12]}"
    facts = folder.with_suffix(".json")
    if not (folder.is_dir() and facts.is_file()):
        with atomic_folder(folder) as out, WorkerProcess(method.name, dtype, threads) as worker:
            write_json(facts, worker.ask("prepare", source=str(dense), out=str(out)))
    measured: dict[str, Any] = read_json(facts)
    return folder, measured


def folder_bytes(folder: Path) -> int:
    """Bytes of every file below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
