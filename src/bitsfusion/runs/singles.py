"""Images from a folder, outside a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from bitsfusion.devices import AUTO, resolve
from bitsfusion.errors import InputError
from bitsfusion.io.files import write_text
from bitsfusion.metrics.generation import generate_images, write_png
from bitsfusion.pipelines.load import check_draws_from_text, load_pipeline


def generate_to_folder(
    folder: str,
    prompts: Sequence[str],
    out: Path,
    *,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    batch_size: int = 4,
    device: str = AUTO,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """PNG files and metadata.jsonl (an imagefolder) of `prompts`; image i has seed `seed` + i.

    Args:
        folder: a packed folder, or any diffusers pipeline.
        out: the images' folder; files of the same names are replaced.
        device: where they are drawn, see `devices.resolve`.
    """
    if not prompts:
        raise InputError("prompts: got none, wanted at least one")
    pipeline = load_pipeline(folder).to(resolve(device))
    check_draws_from_text(pipeline)
    seeds = range(seed, seed + len(prompts))
    images = generate_images(
        pipeline,
        prompts,
        seeds,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch_size=batch_size,
        progress=progress,
    )
    paths, lines = [], []
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        path = out / f"{index:04d}.png"
        write_png(path, image)
        settings = {"seed": seeds[index], "sampler": sampler, "steps": steps, "guidance": guidance, "model": folder}
        lines.append(json.dumps({"file_name": path.name, "text": prompt, **settings}))
        paths.append(path)
    write_text(out / "metadata.jsonl", "\n".join(lines) + "\n")
    return paths
