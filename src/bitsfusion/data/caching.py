"""Fills the cache: every record is read, decoded and encoded once, by any number of processes."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitsfusion.data.batches import Batch, concatenate
from bitsfusion.data.encoder import Encoder
from bitsfusion.data.latent_cache import CHUNK, Chunk, LatentCache, claimed
from bitsfusion.data.pixels import decode_image
from bitsfusion.data.records import BadSampleError, ImageSource, Record, caption_text
from bitsfusion.errors import InputError
from bitsfusion.io.ahead import ahead
from bitsfusion.progress import Progress, silent

_SHOWN = 3


@dataclass(frozen=True)
class BadSampleLimit:
    """How many unusable samples are tolerated: below 1 a fraction of the records, otherwise a count.

    The fraction counts all records or, as long as their number is unknown, those read so far, chunk by chunk.
    """

    value: float

    def exceeded(self, bad: int, records: int) -> bool:
        """Whether `bad` of `records` is too many."""
        return bad > (self.value * records if self.value < 1 else self.value)


def fill(
    cache: LatentCache,
    source: ImageSource,
    encoder: Encoder,
    limit: BadSampleLimit,
    max_samples: int | None = None,
    progress: Progress = silent,
) -> list[Chunk]:
    """Makes every chunk that is missing, together with other processes that do the same.

    Each process takes parts that no other works on; in the end each waits for the others' parts and takes over those
    of a process that died. What a part's chunks hold does not depend on who made them.

    Args:
        max_samples: stop at this many usable samples, in the source's order.

    Returns:
        The chunks in the source's order, up to the one with the last sample wanted.

    Raises:
        InputError: more samples are unusable than `limit` tolerates.
    """
    work = _Filling(cache, source, encoder, limit, max_samples, progress)
    with warnings.catch_warnings():  # here, not where images are decoded: it is not for threads
        warnings.filterwarnings("ignore", module=r"PIL\.")  # large images, damaged EXIF; what it cannot read raises
        for wait in (False, True):
            work.pass_over(wait)
    return work.chunks()


@dataclass(frozen=True)
class _Filling:
    _cache: LatentCache
    _source: ImageSource
    _encoder: Encoder
    _limit: BadSampleLimit
    _max: int | None
    _progress: Progress

    def pass_over(self, wait: bool) -> None:
        """Makes what is wanted of all parts; of those that other processes work on, after waiting or not at all."""
        before = 0
        for part in range(self._source.parts):
            if self.wanted(part, before):
                with claimed(self._cache.folder, part, wait) as granted:
                    if granted:
                        self.part(part, before)
            before += self.samples(part)
            if self._max is not None and before >= self._max:
                break

    def samples(self, part: int) -> int:
        return sum(chunk.samples for chunk in self._cache.chunks(part))

    def wanted(self, part: int, before: int) -> bool:
        """Whether a part needs another chunk, `before` usable samples being in the parts before it."""
        if self._cache.complete(part):
            return False
        return self._max is None or before + self.samples(part) < self._max

    def chunks(self) -> list[Chunk]:
        found, samples = [], 0
        for chunk in self._all():
            if self._max is None or samples < self._max:
                found.append(chunk)
                samples += chunk.samples
        self._check(found, sum(chunk.records for chunk in found))
        return found

    def part(self, part: int, before: int) -> None:
        """Makes chunks of a part until it ends or enough samples are there."""
        if not self.wanted(part, before):  # another process made it while this one waited
            return
        self._cache.sweep(part)
        records = self._source.read(part, sum(chunk.records for chunk in self._cache.chunks(part)))
        following = next(records, None)
        while self.wanted(part, before):
            own = [] if following is None else [following, *itertools.islice(records, CHUNK - 1)]
            following = next(records, None)
            self._write(part, self._chunk(own), last=following is None)

    def _chunk(self, records: list[Record]) -> _Encoded:
        made = _Encoded()
        done = self._all()
        bad, seen = sum(len(chunk.bad) for chunk in done), sum(chunk.records for chunk in done)
        good: list[_Sample] = []
        for record, read in zip(records, ahead(self._read, records, threads=16, most=64), strict=True):
            made.count += 1
            if isinstance(read, str):
                made.bad.append((record.name, read))
                total = self._source.records or (seen + made.count if self._limit.value >= 1 else None)
                if total is not None and self._limit.exceeded(bad + len(made.bad), total):
                    raise self._too_many([one for chunk in done for one in chunk.bad] + made.bad, total)
            else:
                made.digest.update(read.content)
                good.append(read)
            if len(good) == self._encoder.at_once:
                self._encode(good, made)
                good = []
            if made.count % 8 == 0 or made.count == len(records):
                self._progress(seen + made.count, self._source.records or seen + made.count)
        self._encode(good, made)
        return made

    def _read(self, record: Record) -> _Sample | str:
        """What is encoded, or what is wrong with the record."""
        try:
            image, caption = record.load()
            text = caption_text(caption)
            pixels, sizes = decode_image(image, self._encoder.resolution)
        except BadSampleError as error:
            return str(error)
        digest = hashlib.sha256(image)
        digest.update(f"\0{record.name}\0{text}".encode())
        return _Sample(record.name, pixels, sizes, text, digest.digest())

    def _encode(self, good: list[_Sample], made: _Encoded) -> None:
        conditioner = self._encoder.conditioner
        latents = self._encoder.latents([sample.pixels for sample in good])
        finite = latents.isfinite().flatten(1).all(1).tolist()
        kept = [sample for sample, fine in zip(good, finite, strict=True) if fine]
        made.bad += [(s.name, "its latents are not finite") for s, fine in zip(good, finite, strict=True) if not fine]
        captions = [sample.caption for sample in kept]
        sizes = torch.tensor([sample.sizes for sample in kept], dtype=torch.int64).view(-1, 4)
        names = tuple(sample.name for sample in kept)
        latents = latents[torch.tensor(finite, dtype=torch.bool)]
        made.parts.append(Batch(latents, conditioner.rows(captions), names, sizes if conditioner.sized else None))
        made.cut += conditioner.cut(captions)

    def _write(self, part: int, made: _Encoded, last: bool) -> None:
        samples, content = concatenate(made.parts), made.digest.hexdigest()
        self._cache.write(part, samples, bad=made.bad, cut=made.cut, content=content, last=last)
        chunks = self._all()
        self._check(chunks, self._source.records or sum(chunk.records for chunk in chunks))

    def _all(self) -> list[Chunk]:
        """The chunks that are there, of all processes."""
        return [chunk for part in range(self._source.parts) for chunk in self._cache.chunks(part)]

    def _check(self, chunks: list[Chunk], records: int) -> None:
        bad = [one for chunk in chunks for one in chunk.bad]
        if self._limit.exceeded(len(bad), records):
            raise self._too_many(bad, records)

    def _too_many(self, bad: list[tuple[str, str]], records: int) -> InputError:
        return InputError(
            f"{self._source.title}: {len(bad)} of {records} samples cannot be used, more than max_bad_samples "
            f"{self._limit.value:g} allows: {first_few(bad)}"
        )


@dataclass(frozen=True)
class _Sample:
    """A record that was read: pixels [3, h, w] uint8, see `decode_image`, and a hash of image and caption."""

    name: str
    pixels: Tensor
    sizes: tuple[int, int, int, int]
    caption: str
    content: bytes


@dataclass
class _Encoded:
    """A chunk in the making."""

    parts: list[Batch] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    count: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


def first_few(bad: list[tuple[str, str]]) -> str:
    """The first three bad samples with their reasons, and how many more there are."""
    shown = "; ".join(f"{name}: {reason}" for name, reason in bad[:_SHOWN])
    return shown + (f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
