"""Pictures in the order of a set of prompts: files on disk, drawn here or elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from bitsfusion.errors import InputError
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.io.hashes import sha256_file, sha256_json
from bitsfusion.io.pictures import PromptedPicture, read_pictures

Images: TypeAlias = npt.NDArray[np.uint8]
"""[n, h, w, 3]."""


@dataclass(frozen=True)
class PictureFiles:
    """Image files, read as they are needed.

    Fields:
        metadata: how they were drawn, where somebody else drew them and wrote it down.
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any] | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.paths)

    @property
    def sha256(self) -> str:
        """The hash of the files in order."""
        return sha256_json([sha256_file(path) for path in self.paths])

    def batches(self, size: int, first: int = 0) -> Iterator[Images]:
        """The pictures from number `first` on, [n, h, w, 3] uint8, n = `size` but for the last.

        Raises:
            InputError: a file is no image, or of another size than the first of its batch.
        """
        for start in range(first, self.count, size):
            files = self.paths[start : start + size]
            images = [read_picture(path) for path in files]
            for path, image in zip(files, images, strict=True):
                if image.shape != images[0].shape:
                    sizes = ["x".join(map(str, one.shape[1::-1])) for one in (image, images[0])]
                    raise InputError(f"{path}: got {sizes[0]} pixels, wanted {sizes[1]} as in {files[0]}")
            yield np.stack(images)


def read_picture(path: Path) -> Images:
    """An image file as [h, w, 3] uint8.

    Raises:
        InputError: there is no such file, or it is no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: wanted an image, got {error}") from None


def matching_pictures(folder: Path, prompts: PromptSet) -> PictureFiles:
    """The pictures in `folder` (see `io.pictures`): its n-th one of a prompt is that of the prompt's n-th place.

    Raises:
        InputError: there is no such folder, or a prompt has fewer pictures than places.
    """
    found: dict[str, list[PromptedPicture]] = {}
    for picture in read_pictures(folder):
        found.setdefault(picture.prompt, []).append(picture)
    taken: Counter[str] = Counter()
    pictures = []
    wanted = [text.strip() for text in prompts.texts]
    for prompt in wanted:
        have = found.get(prompt, [])
        if taken[prompt] == len(have):
            raise InputError(f"{folder}: got {len(have)} pictures of {prompt[:60]!r}, wanted {wanted.count(prompt)}")
        pictures.append(have[taken[prompt]])
        taken[prompt] += 1
    return PictureFiles(tuple(picture.path for picture in pictures), _metadata(pictures))


def _metadata(pictures: Sequence[PromptedPicture]) -> dict[str, Any]:
    """Each setting that all of the metadata's lines agree on, and the seeds if each has one; null where it is not."""
    lines = [picture.metadata for picture in pictures]
    common = {name: lines[0].get(name) for name in ("model", "model_sha256", "sampler", "steps", "guidance")}
    agreed = {name: one if all(line.get(name) == one for line in lines) else None for name, one in common.items()}
    seeds = [line.get("seed") for line in lines]
    return {**agreed, "seeds": None if None in seeds else seed_range(seeds)}


def seed_range(seeds: Sequence[Any]) -> dict[str, int] | list[Any]:
    """The first and how many there are, where they count on from it; otherwise each."""
    if all(type(seed) is int and seed == seeds[0] + place for place, seed in enumerate(seeds)):
        return {"first": seeds[0], "count": len(seeds)}
    return list(seeds)
