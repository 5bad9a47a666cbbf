"""Training data from the cache: captioned images of any source, each once an epoch, in an order fixed by the seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitsfusion.data.batches import Batch, concatenate
from bitsfusion.data.caching import BadSampleLimit, fill, first_few
from bitsfusion.data.encoder import Encoder
from bitsfusion.data.latent_cache import Chunk, LatentCache
from bitsfusion.data.order import EpochOrder
from bitsfusion.data.records import ImageSource
from bitsfusion.diffusion.conditioning import Conditioner
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.progress import Progress, silent


class CachedData:
    """Samples of a cache's chunks as training data; see `TrainingData`.

    Args:
        chunks: in order; the samples are theirs, numbered through.
        key: what latents and rows depend on besides the images, for the fingerprint.
        seed: of the order.
        max_samples: read no more samples than this.
    """

    def __init__(
        self, chunks: Sequence[Chunk], key: dict[str, Any], seed: int = 0, max_samples: int | None = None
    ) -> None:
        self._chunks = [chunk for chunk in chunks if chunk.samples]
        self._ends = np.cumsum([chunk.samples for chunk in self._chunks])
        total = int(self._ends[-1]) if self._chunks else 0
        self.count = total if max_samples is None else min(total, max_samples)
        self._order = EpochOrder(self.count, seed)
        content = [chunk.content for chunk in self._chunks]
        self._fingerprint = sha256_json({**key, "content": content, "count": self.count, "seed": seed})

    @property
    def fingerprint(self) -> str:
        """A hash of images and captions (their bytes, wherever they lie), VAE, conditioner, resolution and seed."""
        return self._fingerprint

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        """The next `size` samples of the shuffled epochs; see `EpochOrder`."""
        return self.samples(self._order.indices(step, rank, world_size, size))

    def samples(self, indices: Sequence[int]) -> Batch:
        """The samples of these numbers, from 0 to `count`."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        rows = np.asarray(indices) - np.concatenate([[0], self._ends])[numbers]
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers.tolist()):
            places.setdefault(number, []).append(place)
        parts = [self._chunks[number].rows([int(rows[place]) for place in at]) for number, at in places.items()]
        return concatenate(parts).rows(np.argsort([place for at in places.values() for place in at]).tolist())


def cached_data(
    source: ImageSource,
    vae: Any,
    conditioner: Conditioner,
    cache_dir: Path,
    *,
    resolution: int = 512,
    dtype: str = "float16",
    seed: int = 0,
    max_bad_samples: float = 0.01,
    max_samples: int | None = None,
    progress: Progress = silent,
) -> CachedData:
    """`source` as training data; what is not in the cache is encoded first.

    CLIP's token ids are kept and not the text encoder's output, which is cheap to compute (13 GFLOP a sample beside
    803 for one UNet forward at SD-v1.5's size, 0.4 % of a Stage I step) and would take nearly four times as much
    space as the latents.

    Args:
        source: captioned images.
        vae: of a known class, on the device that encodes.
        conditioner: of the pipeline's prompts.
        cache_dir: of all caches; one folder in it for each source, VAE, conditioner, resolution and dtype.
        resolution: of the square images in pixels, a multiple of the VAE's stride.
        dtype: of the stored latents: float16, bfloat16 or float32.
        seed: of the order.
        max_bad_samples: how many unusable samples are tolerated: below 1 a fraction, otherwise a count.
        max_samples: stop at this many usable samples; the rest of the source is not read.
        progress: told the records that all processes have encoded; the total is the same where it is unknown.

    Raises:
        InputError: too many bad samples, none that is good, or a resolution that does not fit.

    Warns:
        UserWarning: how many samples are left out and why, and how many captions were cut.
    """
    encoder = Encoder(vae, conditioner, resolution, dtype)
    key = encoder.key()
    cache = LatentCache(cache_dir, {**key, "source": source.identity, "parts": source.parts})
    chunks = fill(cache, source, encoder, BadSampleLimit(max_bad_samples), max_samples, progress)
    bad = [one for chunk in chunks for one in chunk.bad]
    if not any(chunk.samples for chunk in chunks):
        raise InputError(f"{source.title}: no usable sample" + (f", {first_few(bad)}" if bad else ""))
    records, cut = sum(chunk.records for chunk in chunks), sum(chunk.cut for chunk in chunks)
    if bad:
        warnings.warn(f"{source.title}: {len(bad)} of {records} samples left out: {first_few(bad)}", stacklevel=2)
    if cut:
        warnings.warn(f"{source.title}: {cut} of {records} captions cut to what the text encoder takes", stacklevel=2)
    return CachedData(chunks, key, seed, max_samples)
