"""A packed folder's README.md and the pictures beside it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from bitsfusion.artifact.inspect import inspect_folder, inspect_pipeline
from bitsfusion.artifact.reader import open_folder
from bitsfusion.diffusion.samplers import build_scheduler
from bitsfusion.errors import InputError
from bitsfusion.evaluation.card import PICTURES, README
from bitsfusion.evaluation.card.figure import bits_figure
from bitsfusion.evaluation.card.scores import read_scores
from bitsfusion.evaluation.card.text import BITS_PICTURE, Card, Sample, Use, card_text
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.io.files import atomic_folder, read_json, write_text
from bitsfusion.metrics.generation import generate_images
from bitsfusion.pipelines.load import EMBEDDED, load_pipeline

EMBEDDED_LICENSE = "apache-2.0"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
DEFAULT_SAMPLER = ("pndm", 50)  # the paper's


def write_card(
    folder: Path,
    *,
    license: str,
    name: str | None = None,
    base_model: str | None = None,
    scores: Path | None = None,
    prompts: Sequence[str] = (),
    seed: int = 1024,
    guidance: float = 7.5,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes `folder`/README.md and `folder`/card/ with its pictures, in the place of earlier ones; returns the former.

    Args:
        folder: a packed pipeline folder.
        license: of the hub's identifiers; the original's.
        name: what `from_pretrained` is given in the card; the folder's name unless given.
        base_model: the original's hub id.
        scores: a run's summary.json or the scores.json of `bitsfusion evaluate`.
        prompts: of the samples, drawn by this very folder with seeds from `seed` on.
        command: that made the folder.

    Raises:
        InputError: no packed pipeline folder, or scores of another model. ArtifactError: the folder is broken.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: wanted a packed pipeline folder, got none with model_index.json")
    inspection = inspect_folder(folder)
    table = None if scores is None else read_scores(scores, inspection)
    sampler, steps = _covered(inspection.time_features)
    with atomic_folder(folder / PICTURES) as pictures:
        bits_figure(inspection).savefig(pictures / Path(BITS_PICTURE).name, dpi=130)
        samples = _draw(folder, prompts, seed, guidance, (sampler, steps), pictures, progress)
        config = folder.parent / "config.json"
        of_run = scores is not None and scores.name == "summary.json" and _same_run(scores, config)
        if of_run:
            shutil.copyfile(config, pictures / config.name)
            command = command or f"bitsfusion run {PICTURES}/{config.name} --out RUN"
    text = card_text(
        Card(
            name=name or folder.resolve().name,
            base_model=base_model,
            license=license,
            inspection=inspection,
            parts=[part for part in inspect_pipeline(folder) if part.name not in (README, PICTURES)],
            use=Use(*_scheduler(folder, sampler), steps, guidance, prompts[0] if prompts else "a prompt"),
            scores=table,
            samples=samples,
            provenance=open_folder(folder).config.provenance,
            command=command,
            config=f"{PICTURES}/{config.name}" if of_run else "",
        )
    )
    write_text(folder / README, text)
    return folder / README


def run_scores(folder: Path) -> Path | None:
    """The summary.json of the run that a packed folder lies in, if it does."""
    path = Path(folder).resolve().parent / "summary.json"
    return path if path.is_file() else None


def original_of(scores: Path | None) -> str | None:
    """The original that a file of scores names: a hub id, a folder, or "embedded"."""
    if scores is None:
        return None
    values = read_json(scores)
    if not isinstance(values, dict):
        return None
    named = values.get("model") if "rungs" in values else (values.get("against") or {}).get("source")
    return named if isinstance(named, str) else None


def hub_id(model: str | None) -> str | None:
    """`model` where it is the name of one on the hub; folders' names are not published."""
    return None if model is None or not HUB_ID.fullmatch(model) or Path(model).exists() else model


def known_license(folder: Path, original: str | None) -> str | None:
    """The license that is known: of an earlier card of `folder`, or of the original's where it is a folder."""
    if original == EMBEDDED:
        return EMBEDDED_LICENSE
    for place in (Path(folder), Path(original) if original else None):
        if place is not None and (place / README).is_file():
            found = _header((place / README).read_text(encoding="utf-8")).get("license")
            if isinstance(found, str):
                return found
    return None


def default_prompts(original: str | None) -> tuple[str, ...]:
    """One test prompt of each task for the embedded model; other models have none."""
    return world_prompts("test", 1, 0).texts if original == EMBEDDED else ()


def _header(text: str) -> dict[str, Any]:
    """The YAML between the first two lines of three dashes; nothing where there is none."""
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _covered(features: dict[str, Any]) -> tuple[str, int]:
    """The first sampler that the folder has time features for; the paper's where it serves any."""
    for entry in features.get("samplers") or ():
        return str(entry["name"]), int(entry["steps"])
    return DEFAULT_SAMPLER


def _scheduler(folder: Path, sampler: str) -> tuple[str | None, dict[str, Any]]:
    """The class to set before sampling, where the folder's own would sample otherwise, and what its config lacks."""
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    wanted = build_scheduler(sampler, config)
    plain = type(wanted).from_config(config).config
    options = {
        name: value
        for name, value in wanted.config.items()
        if not name.startswith("_") and plain.get(name, value) != value
    }
    own = config.get("_class_name") == type(wanted).__name__ and not options
    return None if own else type(wanted).__name__, options


def _same_run(scores: Path, config: Path) -> bool:
    return config.is_file() and scores.resolve().parent == config.resolve().parent


def _draw(
    folder: Path,
    prompts: Sequence[str],
    seed: int,
    guidance: float,
    sampler: tuple[str, int],
    pictures: Path,
    progress: Callable[[int, int], None] | None,
) -> list[Sample]:
    if not prompts:
        return []
    seeds = range(seed, seed + len(prompts))
    images = generate_images(
        load_pipeline(str(folder)),
        prompts,
        seeds,
        steps=sampler[1],
        guidance=guidance,
        sampler=sampler[0],
        batch_size=4,
        progress=progress,
    )
    samples = []
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        file = f"sample-{index:02d}.png"
        Image.fromarray(image).save(pictures / file)
        samples.append(Sample(prompt, seeds[index], f"{PICTURES}/{file}"))
    return samples
