"""The images of a set of prompts: drawn by a model, gone on with after a kill, or given, whoever has drawn them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from bitsfusion.data.pictures import PromptedPicture, read_pictures
from bitsfusion.errors import InputError
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.io.files import read_json, sha256_file, sha256_json, write_json, write_text
from bitsfusion.metrics.generation import generate_images, write_png

SETTINGS_NAME = "settings.json"


@dataclass(frozen=True)
class DrawingSettings:
    """All that an image depends on beside its prompt and seed."""

    model_sha256: str
    sampler: str
    steps: int
    guidance: float
    dtype: str = "float32"


@dataclass(frozen=True)
class DrawnImages:
    """Image files in the prompts' order; read as they are needed.

    Fields:
        said: of given pictures, what their metadata tells of how they were drawn.
    """

    paths: tuple[Path, ...]
    said: Mapping[str, Any] | None = None

    @property
    def count(self) -> int:
        """Of the images."""
        return len(self.paths)

    @property
    def sha256(self) -> str:
        """Of the files in order."""
        return sha256_json([sha256_file(path) for path in self.paths])

    def batches(self, size: int, first: int = 0) -> Iterator[npt.NDArray[np.uint8]]:
        """The images from number `first` on, [n, h, w, 3] uint8, n = `size` but for the last."""
        for start in range(first, self.count, size):
            files = self.paths[start : start + size]
            images = [read_png(path) for path in files]
            for path, image in zip(files, images, strict=True):
                if image.shape != images[0].shape:
                    sizes = ["x".join(map(str, one.shape[1::-1])) for one in (image, images[0])]
                    raise InputError(f"{path}: got {sizes[0]} pixels, wanted {sizes[1]} as in {files[0]}")
            yield np.stack(images)


def read_png(path: Path) -> npt.NDArray[np.uint8]:
    """An image file as [h, w, 3] uint8.

    Raises:
        InputError: there is no such file, or it is no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: wanted an image, got {error}") from None


def draw(
    pipeline: Callable[[], Any],
    prompts: PromptSet,
    folder: Path,
    settings: DrawingSettings,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> DrawnImages:
    """Draws what is missing; at the end metadata.jsonl makes the folder an imagefolder.

    An image depends on its prompt, seed and the settings, not on the batch it is drawn in, so it makes no difference
    where a killed call had come to.

    Args:
        pipeline: called only if something is missing.

    Raises:
        InputError: the folder holds images of other prompts or settings.
    """
    images = DrawnImages(tuple(folder / f"{index:05d}.png" for index in range(len(prompts.texts))))
    identity = {**asdict(settings), "prompts_sha256": prompts.sha256}
    record = folder / SETTINGS_NAME
    if not record.exists():
        write_json(record, identity)
    elif (found := read_json(record)) != identity:
        known = found if isinstance(found, dict) else {}
        differ = ", ".join(key for key in identity if known.get(key) != identity[key])
        raise InputError(f"{folder}: holds images of another {differ}, wanted the same or an empty folder")
    missing = [index for index in range(images.count) if not images.paths[index].exists()]
    if missing:
        ready, done = pipeline(), images.count - len(missing)
        for start in range(0, len(missing), batch_size):
            chunk = missing[start : start + batch_size]
            drawn = generate_images(
                ready,
                [prompts.texts[index] for index in chunk],
                [prompts.seeds[index] for index in chunk],
                steps=settings.steps,
                guidance=settings.guidance,
                sampler=settings.sampler,
                batch_size=batch_size,
            )
            for index, image in zip(chunk, drawn, strict=True):
                write_png(images.paths[index], image)
            if progress is not None:
                progress(done + start + len(chunk), images.count)
    lines = [
        json.dumps({"file_name": path.name, "text": text, "seed": seed, **identity})
        for path, text, seed in zip(images.paths, prompts.texts, prompts.seeds, strict=True)
    ]
    write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    return images


def given(folder: Path, prompts: PromptSet) -> DrawnImages:
    """The pictures in `folder` (see `data.pictures`): its n-th one of a prompt is that of the prompt's n-th place.

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
    return DrawnImages(tuple(picture.path for picture in pictures), _said(pictures))


def _said(pictures: Sequence[PromptedPicture]) -> dict[str, Any]:
    """Each setting that all of the metadata's lines agree on, and the seeds if each has one; null where it is not."""
    lines = [picture.said for picture in pictures]
    common = {name: lines[0].get(name) for name in ("model", "model_sha256", "sampler", "steps", "guidance")}
    agreed = {name: one if all(line.get(name) == one for line in lines) else None for name, one in common.items()}
    seeds = [line.get("seed") for line in lines]
    return {**agreed, "seeds": None if None in seeds else seeds_said(seeds)}


def seeds_said(seeds: Sequence[Any]) -> dict[str, int] | list[Any]:
    """The first and how many there are, where they count on from it; otherwise each."""
    if all(type(seed) is int and seed == seeds[0] + place for place, seed in enumerate(seeds)):
        return {"first": seeds[0], "count": len(seeds)}
    return list(seeds)
