"""The cache folder: latents and prompt rows of a source in safetensors chunks, each written whole or not at all.

`part-00012-0003.safetensors` holds what became of up to 512 records of part 12, from its 1536th on: `latents`
[n, c, h, w] in the cache's dtype, the captions' rows such as `input_ids` [n, tokens] int32, and where the denoiser is
told them, `sizes` [n, 4] int32; n being the usable ones. Its metadata holds the
numbers in `Chunk` and the samples' names. A part is complete when its chunks lead without a gap to a `last` one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bitsfusion.data.batches import Batch
from bitsfusion.io.atomic import atomic_path
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.locks import try_lock, wait_for_lock
from bitsfusion.io.texts import write_json

SCHEMA_VERSION = 1
CHUNK = 512
"""Records in a chunk: what a kill costs at most, and what a process claims at least."""
LATENTS, SIZES = "latents", "sizes"
"""Names of tensors in a chunk; all others are prompt rows."""


@dataclass(frozen=True)
class Chunk:
    """One file of the cache.

    path: of the file. samples: how many are usable. bad: (name, reason) of the others. cut: how many captions were
    longer than the tokenizer takes. content: SHA-256 over names, images and captions. last: whether the part ends here.
    """

    path: Path
    samples: int
    bad: tuple[tuple[str, str], ...]
    cut: int
    content: str
    last: bool

    @property
    def records(self) -> int:
        """Usable or not."""
        return self.samples + len(self.bad)

    def rows(self, rows: Sequence[int]) -> Batch:
        """Some samples: latents float32, whole numbers int64."""
        with safe_open(self.path, "pt") as file:
            names = json.loads(file.metadata()["names"])
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: torch.cat([part[row : row + 1] for row in rows]) for n, part in slices.items()}
        wide = {n: part.float() if part.is_floating_point() else part.long() for n, part in found.items()}
        latents, sizes = wide.pop(LATENTS), wide.pop(SIZES, None)
        return Batch(latents, wide, tuple(names[row] for row in rows), sizes)


class LatentCache:
    """The chunks of one source, encoder and resolution.

    Args:
        root: of all caches; the folder is made there under a name derived from `key`.
        key: all that the content depends on, as JSON; kept in the folder's key.json.
    """

    def __init__(self, root: Path, key: Mapping[str, Any]) -> None:
        key = {"schema_version": SCHEMA_VERSION, "chunk": CHUNK, **key}
        self.folder = Path(root) / sha256_json(key)[:32]
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", key)
        self._known: dict[int, list[Chunk]] = {}

    def chunks(self, part: int) -> list[Chunk]:
        """The chunks of a part that are there, from its beginning without a gap."""
        known = self._known.setdefault(part, [])
        while not (known and known[-1].last):
            chunk = _read(self._path(part, len(known)))
            if chunk is None:
                break
            known.append(chunk)
        return known

    def complete(self, part: int) -> bool:
        """Whether all chunks of a part are there."""
        chunks = self.chunks(part)
        return bool(chunks) and chunks[-1].last

    def write(
        self,
        part: int,
        samples: Batch,
        *,
        bad: Sequence[tuple[str, str]],
        cut: int,
        content: str,
        last: bool,
    ) -> None:
        """Adds the next chunk of a part, its latents in their own dtype; see `Chunk`."""
        metadata = {
            "samples": str(len(samples.names)),
            "names": json.dumps(list(samples.names)),
            "bad": json.dumps([list(one) for one in bad]),
            "cut": str(cut),
            "content": content,
            "last": json.dumps(last),
        }
        sizes = {} if samples.sizes is None else {SIZES: samples.sizes}
        tensors = {LATENTS: samples.latents, **samples.prompts, **sizes}
        tensors = {
            name: (t if t.is_floating_point() else t.to(torch.int32)).contiguous() for name, t in tensors.items()
        }
        with atomic_path(self._path(part, len(self.chunks(part)))) as temporary:
            save_file(tensors, temporary, metadata)

    def sweep(self, part: int) -> None:
        """Removes what killed writers left of a part; for its claimant alone."""
        for left in self.folder.glob(f".part-{part:05d}-*.partial"):
            left.unlink(missing_ok=True)

    def _path(self, part: int, number: int) -> Path:
        return self.folder / f"part-{part:05d}-{number:04d}.safetensors"


def _read(path: Path) -> Chunk | None:
    """A chunk's metadata; None if it is not there or damaged, in which case it is made again."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        bad = tuple((str(name), str(reason)) for name, reason in json.loads(metadata["bad"]))
        last = json.loads(metadata["last"])
        return Chunk(path, int(metadata["samples"]), bad, int(metadata["cut"]), metadata["content"], last)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


@contextlib.contextmanager
def claimed(folder: Path, part: int, wait: bool) -> Iterator[bool]:
    """Claims a part of the cache in `folder`; yields whether it could, which it always could after `wait`-ing.

    A claim is a lock, freed by the system when its process dies. On a file system without locks every claim is granted:
    parts may then be made twice, which costs time only.
    """
    path = folder / f"part-{part:05d}.lock"
    lock = wait_for_lock(path) if wait else try_lock(path)
    with lock or contextlib.nullcontext():
        yield lock is not None
