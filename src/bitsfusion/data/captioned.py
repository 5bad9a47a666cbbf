"""Captioned images in a folder: Hugging Face's imagefolder with a metadata.jsonl of {"file_name", "text"}."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from bitsfusion.data.batches import Batch, encode_images, tokenize
from bitsfusion.errors import InputError
from bitsfusion.files import sha256_json


@dataclass(frozen=True)
class CaptionedImage:
    """One image file and its caption; `size` is the file's in bytes."""

    path: Path
    text: str
    size: int


def read_image_folder(folder: Path) -> list[CaptionedImage]:
    """The images listed in `folder`/metadata.jsonl, in its order.

    Raises:
        InputError: there is no metadata.jsonl, a line is not {"file_name", "text"} (more keys are ignored),
            an image is missing or lies outside the folder, or there are none.
    """
    listing = Path(folder) / "metadata.jsonl"
    if not listing.is_file():
        raise InputError(f"{listing}: no such file, wanted one line of {{file_name, text}} for each image")
    found: list[CaptionedImage] = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{listing}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: wanted a JSON object, got {error}") from None
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("file_name", "text")):
            raise InputError(f'{where}: wanted {{"file_name": text, "text": text}}, got {line[:120]}')
        path = Path(folder) / entry["file_name"]
        if not path.resolve().is_relative_to(Path(folder).resolve()):
            raise InputError(f"{where}: file_name {entry['file_name']!r} points outside the folder")
        if not path.is_file():
            raise InputError(f"{where}: no image {path}")
        found.append(CaptionedImage(path, entry["text"], path.stat().st_size))
    if not found:
        raise InputError(f"{listing}: lists no images")
    return found


def load_pixels(path: Path, resolution: int) -> Tensor:
    """An image resized so that its short side is `resolution` (bicubic) and cropped to the centre square.

    Returns:
        [3, resolution, resolution] float32 in [-1, 1].

    Raises:
        InputError: the file is no image that PIL can read.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: wanted an image, got {error}") from None
    image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)


class CaptionedData:
    """A folder of captioned images as training data; every image once an epoch, in an order fixed by the seed.

    Args:
        folder: see `read_image_folder`.
        vae: an AutoencoderKL, already on the device that shall encode.
        tokenizer: the text encoder's.
        resolution: of the square images in pixels, a multiple of the VAE's stride.
        seed: of the order.
        cache_latents: keep each image's latents in memory (64 KB for an image of 512 pixels) so that only the
            first epoch pays for decoding and encoding.
    """

    def __init__(
        self,
        folder: Path,
        vae: Any,
        tokenizer: Any,
        *,
        resolution: int = 512,
        seed: int = 0,
        cache_latents: bool = True,
    ) -> None:
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        if resolution < stride or resolution % stride:
            raise InputError(f"resolution: got {resolution}, wanted a multiple of {stride} pixels, the VAE's stride")
        self.images = read_image_folder(folder)
        self._vae, self._tokenizer, self._resolution, self._seed = vae, tokenizer, resolution, seed
        self._latents: dict[int, Tensor] | None = {} if cache_latents else None
        listing = [[image.path.name, image.text, image.size] for image in self.images]
        self._fingerprint = sha256_json({"images": listing, "resolution": resolution, "seed": seed})
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    @property
    def fingerprint(self) -> str:
        """Of the captions, file names and sizes, the resolution and the seed."""
        return self._fingerprint

    def _shuffled(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self.images))

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        """The next `size` images of the shuffled epochs; processes take turns, step by step."""
        first = (step * world_size + rank) * size
        places = (divmod(place, len(self.images)) for place in range(first, first + size))
        chosen = [int(self._order(epoch)[within]) for epoch, within in places]
        images = [self.images[index] for index in chosen]
        return Batch(
            self._encoded(chosen),
            tokenize(self._tokenizer, [image.text for image in images]),
            tuple(str(image.path) for image in images),
        )

    def _encoded(self, chosen: list[int]) -> Tensor:
        if self._latents is None:
            return encode_images(self._vae, torch.stack([self._pixels(index) for index in chosen]))
        # One at a time: in a batch the last bits could depend on which images were still missing, and a resumed
        # run has another history.
        for index in chosen:
            if index not in self._latents:
                self._latents[index] = encode_images(self._vae, self._pixels(index)[None])[0]
        return torch.stack([self._latents[index] for index in chosen])

    def _pixels(self, index: int) -> Tensor:
        return load_pixels(self.images[index].path, self._resolution)
