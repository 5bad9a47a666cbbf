"""The model card of a packed folder: README.md, as the Hugging Face hub shows it, and its pictures."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from bitsfusion.artifact.hashes import read_hashes
from bitsfusion.artifact.inspect import ComponentSize, Inspection, inspect_folder, inspect_pipeline
from bitsfusion.artifact.reader import open_folder
from bitsfusion.devices import AUTO, resolve
from bitsfusion.diffusion.samplers import OWN, build_scheduler
from bitsfusion.embedded import embedded_model
from bitsfusion.errors import InputError
from bitsfusion.evaluation.drawing import Sampling, draw
from bitsfusion.evaluation.prompts import PromptSet, world_prompts
from bitsfusion.io.atomic import atomic_folder, remove_leftovers
from bitsfusion.io.hashes import sha256_file
from bitsfusion.io.texts import read_json, write_text
from bitsfusion.pipelines.folder import CARD, PICTURES, README, read_folder
from bitsfusion.pipelines.generation import write_png
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.pipelines.weight_files import is_weights
from bitsfusion.progress import Progress, silent
from bitsfusion.recipe.schema import write_recipe
from bitsfusion.report.card_origin import packed_command, packed_recipe
from bitsfusion.report.charts import layer_chart
from bitsfusion.report.data import layer_rows
from bitsfusion.report.numbers import size
from bitsfusion.report.scores import ScoreTable, read_scores
from bitsfusion.report.template import rendered

EMBEDDED_LICENSE = "apache-2.0"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
STEPS = 50  # the paper's
FEW_STEPS = 4  # of consistency models
BITS_PICTURE = f"{PICTURES}/bits.png"
RECIPE = f"{PICTURES}/recipe.json"
MODEL = "MODEL"
"""Stands in a command for an original without a public name."""


@dataclass(frozen=True)
class Sample:
    """A picture beside the card."""

    prompt: str
    seed: int
    file: str


@dataclass(frozen=True)
class HashedFile:
    """A file of weights, and its SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Use:
    """How a pipeline is called: its scheduler's class where it is not the folder's own, with options that the folder's
    config lacks, and its steps."""

    scheduler: str | None
    options: Mapping[str, Any]
    steps: int | None
    guidance: float
    prompt: str


@dataclass(frozen=True)
class Card:
    """All that a card says.

    Fields:
        name: what `from_pretrained` is given: a hub id, or the folder's name.
        base_model: the original's hub id; None where it has none.
        license: of the hub's identifiers. parts: of the pipeline's folder.
        component, noun: the denoiser's name in the pipeline, and what such a model is called.
        provenance: what it says about its making. command: that made it. config: the file that it took. recipe: the
            file of the bits of each layer.
        files: every file of weights.
    """

    name: str
    base_model: str | None
    license: str
    inspection: Inspection
    parts: Sequence[ComponentSize]
    use: Use
    component: str
    noun: str
    scores: ScoreTable | None = None
    samples: Sequence[Sample] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    config: str = ""
    recipe: str = ""
    files: Sequence[HashedFile] = ()

    def text(self) -> str:
        """The whole README.md: the hub's YAML header, with the scores as evaluation results, and Markdown."""
        options: dict[str, Any] = {"base_model_relation": "quantized"} if self.base_model else {}
        if self.scores:
            options |= {"model_name": self.name, "eval_results": list(self.scores.results)}
        header = ModelCardData(
            library_name="diffusers",
            pipeline_tag="text-to-image",
            license=self.license,
            base_model=self.base_model,
            tags=["bitsfusion", "quantization", "low-bit", "diffusers", "text-to-image"],
            **options,
        )
        body = rendered(
            "card.md",
            card=self,
            bits=self.inspection.average_bits,
            sizes=self._sizes(),
            features={"steps": None, "samplers": (), **self.inspection.time_features},
            bits_picture=BITS_PICTURE,
            made={k: v for k, v in self.provenance.items() if isinstance(v, (str, int, float)) and v != ""},
        )
        return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n{body}"))

    def _sizes(self) -> list[tuple[str, str]]:
        found = self.inspection
        disk, memory, dense = found.bytes_on_disk.total, found.bytes_in_memory, found.bytes_fp16
        others = [part for part in self.parts if part.weights and part.name != self.component]
        return [
            ("bits a weight, by the paper's formula", f"{found.average_bits:.4f}"),
            ("bits a weight, on disk", f"{found.true_bits:.4f}"),
            ("bits a weight, all of the file", f"{found.file_bits:.4f}"),
            (f"{self.noun} on disk", f"{size(disk)}, {dense / disk:.1f} times smaller than {size(dense)} in FP16"),
            (f"{self.noun} in memory", f"{size(memory)}, {dense / memory:.1f} times smaller"),
            *((f"{part.name} on disk", f"{size(part.bytes_on_disk)}, {part.form}") for part in others),
            ("the whole pipeline on disk", size(sum(part.bytes_on_disk for part in self.parts)) + self._true_bits()),
        ]

    def _true_bits(self) -> str:
        """Of every component with weights, over all that they hold, where that is known."""
        models = [part for part in self.parts if part.weights]
        if any(part.parameters is None for part in models):
            return ""
        count = sum(part.parameters or 0 for part in models)
        true = 8 * sum(part.bytes_on_disk for part in models) / count
        return f": {true:.2f} bits for each of its {count:,} parameters"


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
    device: str = AUTO,
    progress: Progress = silent,
) -> Path:
    """Writes `folder`/README.md and `folder`/card/ with its pictures, in the place of earlier ones; returns the former.

    Args:
        folder: a packed pipeline folder.
        license: of the hub's identifiers; the original's.
        name: what `from_pretrained` is given in the card; the folder's name unless given.
        base_model: the original's hub id.
        scores: a run's summary.json or the scores.json of `bitsfusion evaluate`.
        prompts: of the samples, drawn by this very folder with seeds from `seed` on.
        command: that made the folder; unless given, what the folder says of its making.
        device: where the samples are drawn, see `devices.resolve`.

    Raises:
        InputError: no packed pipeline folder, or scores of another model. ArtifactError: the folder is broken.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: wanted a packed pipeline folder, got none with model_index.json")
    denoiser, inspection = read_folder(folder).denoiser, inspect_folder(folder)
    packed = open_folder(folder).config
    table = None if scores is None else read_scores(scores, inspection)
    sampler, steps = _sampling(folder, inspection.time_features)
    with atomic_folder(folder / PICTURES) as pictures:
        chart = layer_chart(layer_rows(inspection), inspection.average_bits)
        chart.savefig(pictures / Path(BITS_PICTURE).name, dpi=130)
        samples = _draw(folder, prompts, seed, guidance, (sampler, steps), pictures, device, progress)
        config = folder.parent / "config.json"
        of_run = scores is not None and scores.name == "summary.json" and _same_run(scores, config)
        if of_run:
            shutil.copyfile(config, pictures / config.name)
            command = command or f"bitsfusion run {PICTURES}/{config.name} --out RUN"
        recipe = packed_recipe(packed, base_model or MODEL)
        if recipe is not None:
            write_recipe(pictures / Path(RECIPE).name, recipe)
    card = Card(
        name=name or folder.resolve().name,
        base_model=base_model,
        license=license,
        inspection=inspection,
        parts=[part for part in inspect_pipeline(folder) if part.name not in CARD],
        use=Use(*_scheduler(folder, sampler), steps, guidance, prompts[0] if prompts else "a prompt"),
        component=denoiser.name,
        noun=denoiser.architecture.noun if denoiser.architecture else denoiser.class_name,
        scores=table,
        samples=samples,
        provenance=packed.provenance,
        command=command or packed_command(folder, base_model or MODEL, None if recipe is None else RECIPE),
        config=f"{PICTURES}/{config.name}" if of_run else "",
        recipe="" if recipe is None else RECIPE,
        files=_hashed(folder),
    )
    remove_leftovers(folder / README)
    write_text(folder / README, card.text())
    return folder / README


def run_scores(folder: Path) -> Path | None:
    """The summary.json of the run that a packed folder lies in, if it does."""
    path = Path(folder).resolve().parent / "summary.json"
    return path if path.is_file() else None


def original_of(scores: Path | None) -> str | None:
    """The original that a file of scores names: a hub id, a folder, or an embedded model."""
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
    if embedded_model(original):
        return EMBEDDED_LICENSE
    for place in (Path(folder), Path(original) if original else None):
        if place is not None and (place / README).is_file():
            try:
                found = ModelCard.load(place / README).data.license
            except (OSError, ValueError, yaml.YAMLError):  # a README without a header that can be read
                continue
            if isinstance(found, str):
                return found
    return None


def default_prompts(original: str | None) -> tuple[str, ...]:
    """One test prompt of each task for an embedded model; other models have none."""
    found = embedded_model(original)
    return world_prompts(found.world, "test", 1, 0).texts if found else ()


def _sampling(folder: Path, features: dict[str, Any]) -> tuple[str, int]:
    """The first sampler that the folder has time features for; its own where it serves any."""
    for entry in features.get("samplers") or ():
        return str(entry["name"]), int(entry["steps"])
    own = read_json(folder / "scheduler" / "scheduler_config.json").get("_class_name")
    return OWN, FEW_STEPS if own in ("LCMScheduler", "TCDScheduler") else STEPS


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


def _hashed(folder: Path) -> list[HashedFile]:
    """Files of weights in order of name; hashes as they were written beside them, where they were."""
    known = read_hashes(folder) or {}
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*") if is_weights(file.name))
    return [
        HashedFile(name, (folder / name).stat().st_size, known.get(name) or sha256_file(folder / name))
        for name in names
    ]


def _same_run(scores: Path, config: Path) -> bool:
    return config.is_file() and scores.resolve().parent == config.resolve().parent


def _draw(
    folder: Path,
    prompts: Sequence[str],
    seed: int,
    guidance: float,
    sampler: tuple[str, int],
    pictures: Path,
    device: str,
    progress: Progress,
) -> list[Sample]:
    if not prompts:
        return []
    asked = PromptSet(tuple(prompts), tuple(range(seed, seed + len(prompts))))
    images = draw(load_pipeline(str(folder)).to(resolve(device)), asked, Sampling(*sampler, guidance, 4), progress)
    files = [f"sample-{index:02d}.png" for index in range(len(prompts))]
    for file, image in zip(files, images, strict=True):
        write_png(pictures / file, image)
    drawn = zip(asked.texts, asked.seeds, files, strict=True)
    return [Sample(text, number, f"{PICTURES}/{file}") for text, number, file in drawn]
