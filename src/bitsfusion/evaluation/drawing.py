"""Pictures of a set of prompts by a pipeline: in memory, or into a folder, where a killed call continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from bitsfusion.devices import AUTO, resolve
from bitsfusion.errors import InputError
from bitsfusion.evaluation.pictures import Images, PictureFiles
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.io.atomic import remove_leftovers
from bitsfusion.io.texts import read_json, write_json, write_text
from bitsfusion.pipelines.generation import generate_images, write_png
from bitsfusion.pipelines.load import check_draws_from_text, load_pipeline
from bitsfusion.progress import Progress, silent

SETTINGS_NAME = "settings.json"


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; `size` is the pixels of a side, None for the model's own.

    `batch_size` makes no difference to them beyond the rounding of float arithmetic.
    """

    sampler: str
    steps: int
    guidance: float
    batch_size: int
    size: int | None = None


def draw(
    pipeline: DiffusionPipeline,
    prompts: PromptSet,
    sampling: Sampling,
    progress: Progress = silent,
) -> Images:
    """The picture of each prompt and its seed, [n, h, w, 3] uint8, drawn where the pipeline is."""
    return generate_images(pipeline, prompts.texts, prompts.seeds, **asdict(sampling), progress=progress)


def draw_into(
    folder: Path,
    pipeline: Callable[[], DiffusionPipeline],
    prompts: PromptSet,
    sampling: Sampling,
    model_sha256: str,
    dtype: str = "float32",
    progress: Progress = silent,
) -> PictureFiles:
    """Draws what is missing; at the end metadata.jsonl makes the folder an imagefolder.

    A picture depends on its prompt, seed and the settings, not on the batch it is drawn in, so it makes no difference
    where a killed call had come to.

    Args:
        pipeline: called only if something is missing.
        model_sha256, dtype: what a picture depends on beside prompt, seed and sampling.

    Raises:
        InputError: the folder holds pictures of other prompts or settings.
    """
    drawn_by = {"model_sha256": model_sha256, **asdict(sampling), "dtype": dtype, "prompts_sha256": prompts.sha256}
    drawn_by = {key: value for key, value in drawn_by.items() if key != "batch_size" and value is not None}
    record = folder / SETTINGS_NAME
    paths = [folder / f"{index:05d}.png" for index in range(len(prompts.texts))]
    if not record.exists() or not any(path.exists() for path in paths):
        write_json(record, drawn_by)
    elif (found := read_json(record)) != drawn_by:
        known = found if isinstance(found, dict) else {}
        differ = ", ".join(key for key in drawn_by if known.get(key) != drawn_by[key])
        raise InputError(f"{folder}: holds images of another {differ}, wanted the same or an empty folder")
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    if missing:
        _draw_files(pipeline(), prompts, paths, missing, sampling, progress)
    return _imagefolder(folder, paths, prompts, drawn_by)


def generate_to_folder(
    folder: str,
    prompts: Sequence[str],
    out: Path,
    *,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    size: int | None = None,
    batch_size: int = 4,
    device: str = AUTO,
    progress: Progress = silent,
) -> list[Path]:
    """PNG files and metadata.jsonl (an imagefolder) of `prompts`; image i has seed `seed` + i.

    Args:
        folder: a packed folder, or any diffusers pipeline.
        out: the images' folder; files of the same names are replaced.
        size: pixels of a side; None for the model's own.
        device: where they are drawn, see `devices.resolve`.
    """
    if not prompts:
        raise InputError("prompts: got none, wanted at least one")
    asked = PromptSet(tuple(prompts), tuple(range(seed, seed + len(prompts))))
    paths = [out / f"{index:04d}.png" for index in range(len(prompts))]
    sampling = Sampling(sampler, steps, guidance, batch_size, size)
    where = resolve(device)
    pipeline = load_pipeline(folder)
    check_draws_from_text(pipeline)
    pipeline.to(where)
    for path in (*paths, out / "metadata.jsonl"):
        remove_leftovers(path)
    _draw_files(pipeline, asked, paths, range(len(paths)), sampling, progress)
    drawn_by = {"sampler": sampler, "steps": steps, "guidance": guidance, "model": folder}
    drawn_by |= {} if size is None else {"size": size}
    return list(_imagefolder(out, paths, asked, drawn_by).paths)


def _draw_files(
    pipeline: DiffusionPipeline,
    prompts: PromptSet,
    paths: Sequence[Path],
    places: Sequence[int],
    sampling: Sampling,
    progress: Progress,
) -> None:
    """Writes the pictures of `places`, batch by batch."""
    done = len(paths) - len(places)
    for start in range(0, len(places), sampling.batch_size):
        chunk = places[start : start + sampling.batch_size]
        for index, image in zip(chunk, draw(pipeline, prompts.chosen(chunk), sampling), strict=True):
            write_png(paths[index], image)
        progress(done + start + len(chunk), len(paths))


def _imagefolder(folder: Path, paths: Sequence[Path], prompts: PromptSet, drawn_by: Mapping[str, Any]) -> PictureFiles:
    lines = [
        json.dumps({"file_name": path.name, "text": text, "seed": seed, **drawn_by})
        for path, text, seed in zip(paths, prompts.texts, prompts.seeds, strict=True)
    ]
    write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    return PictureFiles(tuple(paths))
