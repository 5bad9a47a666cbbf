"""One model, and the original beside it, on the same prompts and seeds: images, metrics, scores.json (section 7).

In a model's place there may be a folder of pictures that it, or any other generator, has drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.data.pictures import holds_pictures
from bitsfusion.errors import InputError
from bitsfusion.evaluation.card import PICTURES, README
from bitsfusion.evaluation.drawn import DrawingSettings, DrawnImages, draw, given, seeds_said
from bitsfusion.evaluation.estimates import difference, estimate
from bitsfusion.evaluation.measures import (
    ImageMeasure,
    JudgedMeasure,
    Judgement,
    Measure,
    PairMeasure,
    SetMeasure,
    Values,
)
from bitsfusion.evaluation.partial import PartialJudgements
from bitsfusion.evaluation.prompts import PromptSet
from bitsfusion.files import folder_lock, read_json, sha256_folder, sha256_json, write_json
from bitsfusion.models.pipeline import load_pipeline, pipeline_folder

SCHEMA_VERSION = 1
PACKAGES = ("bitsfusion", "torch", "diffusers", "transformers", "torchmetrics", "numpy", "scipy", "pillow")
MODEL, AGAINST = "model", "against"

Progress = Callable[[str, int, int], None]
"""Called with what is under way, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Evaluation:
    """What is drawn.

    Fields:
        model, against: a packed folder, a diffusers pipeline, a hub id, "embedded", or a folder of pictures (see
            `data.pictures`), which are taken as they are; against may be None.
        prompts: one entry an image, the images of a prompt beside each other, each with its seed.
        prompts_source: what results call them.
        sampler, steps, guidance: of what is drawn; every guidance is a set of images (the paper: 2.5 to 9.5).
        dtype: of the pipelines; a packed UNet computes in it, too.
    """

    model: str
    against: str | None
    prompts: PromptSet
    prompts_source: str
    images_per_prompt: int = 1
    sampler: str = "pndm"
    steps: int = 50
    guidance: tuple[float, ...] = (7.5,)
    batch_size: int = 8
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def sources(self) -> dict[str, str]:
        """Of the one side or both."""
        return {MODEL: self.model} | ({AGAINST: self.against} if self.against else {})

    @property
    def given(self) -> set[str]:
        """The sides that are folders of pictures."""
        return {side for side, source in self.sources.items() if holds_pictures(source)}

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at all; otherwise sampler, steps, guidance and seeds are not known."""
        return len(self.given) < len(self.sources)

    @property
    def set_guidance(self) -> Sequence[float | None]:
        """Of each set of images; None where it is not known."""
        return self.guidance if self.draws else (None,)


def evaluate(
    evaluation: Evaluation, measures: Sequence[Measure], out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Draws what is missing under `out`, measures what is not measured, and writes scores.json: its content.

    `out` gets model/ and against/ with a folder of PNG files for each guidance, and values/ with every image's
    values. A killed call goes on with the same arguments.

    Raises:
        InputError: no such model, or `out` holds images of others or is at work in another process; or whatever a
            measure refuses.
    """
    report = progress or (lambda what, done, total: None)
    sources = evaluation.sources
    if evaluation.given and len(evaluation.guidance) > 1:
        raise InputError(f"guidance: got {len(evaluation.guidance)} values beside a folder of pictures, wanted one")
    pictures = {side: given(Path(sources[side]), evaluation.prompts) for side in sorted(evaluation.given)}
    hashes = {side: pictures[side].sha256 if side in pictures else _sha256(sources[side]) for side in sources}
    identities = {side: _identity(source, hashes[side], pictures.get(side)) for side, source in sources.items()}
    with folder_lock(out, out / ".lock"):
        drawn: dict[str, dict[float | None, DrawnImages]] = {}
        for side in sources:
            if side in pictures:
                drawn[side] = dict.fromkeys(evaluation.set_guidance, pictures[side])
            else:
                drawn[side] = _draw(evaluation, side, hashes[side], out, report)
        results = []
        for guidance in evaluation.set_guidance:
            sides = {side: drawn[side][guidance] for side in sources}
            for measure in measures:
                values = _Values(out, measure, guidance, evaluation, hashes, report)
                results.append(
                    {
                        "metric": measure.metric.value,
                        "guidance": guidance,
                        **_scores(measure, sides, values),
                        "of": {**_drawn(evaluation), **identities, "settings": dict(measure.settings)},
                    }
                )
        scores = {
            "schema_version": SCHEMA_VERSION,
            **identities,
            "settings": _settings(evaluation),
            "metrics": {measure.metric.value: dict(measure.settings) for measure in measures},
            "results": results,
            "packages": {name: metadata.version(name) for name in PACKAGES},
        }
        write_json(out / "scores.json", scores)
    return scores


@dataclass(frozen=True)
class _Found:
    """Values, and the records of a `JudgedMeasure`."""

    values: Values
    records: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class _Values:
    """Every image's value by one measure, kept in files below `out`."""

    out: Path
    measure: Measure
    guidance: float | None
    evaluation: Evaluation
    hashes: dict[str, str]
    report: Progress

    def of(self, side: str, compute: Callable[[Callable[[int], None], PartialJudgements], _Found]) -> _Found:
        """From the file if it is of the same images and settings, otherwise computed; told how many are done."""
        metric = self.measure.metric.value
        path = self.out / "values" / f"{metric}-{side}-{self._set}.json"
        models = self.hashes if isinstance(self.measure, PairMeasure) else self.hashes[side]
        parts = [models, self.guidance, _drawn(self.evaluation), metric, dict(self.measure.settings)]
        identity = sha256_json(parts)
        count = len(self.evaluation.prompts.texts)
        stored = read_json(path) if path.exists() else None
        if isinstance(stored, dict) and stored.get("identity") == identity:
            values = np.asarray(stored.get("values"), dtype=np.float64)
            if values.shape == ((1,) if isinstance(self.measure, SetMeasure) else (count,)):
                return _Found(values, stored.get("records", []))
        partial = PartialJudgements(path.with_suffix(".partial.jsonl"), identity)
        found = compute(lambda done: self.report(f"{metric}, {side}, {self._set}", done, count), partial)
        records = {"records": found.records} if found.records else {}
        write_json(path, {"identity": identity, "values": found.values.tolist(), **records})
        partial.remove()
        return found

    def official(self, side: str) -> Path:
        """Where the published evaluator's files go."""
        return self.out / self.measure.metric.value / side / self._set

    @property
    def _set(self) -> str:
        return "given" if self.guidance is None else f"guidance-{self.guidance:g}"


def _scores(measure: Measure, sides: dict[str, DrawnImages], values: _Values) -> dict[str, Any]:
    size, each = values.evaluation.batch_size, values.evaluation.images_per_prompt
    if isinstance(measure, PairMeasure):
        pairs = values.of(MODEL, functools.partial(_pairs, measure, sides[MODEL], sides[AGAINST], size))
        return {"to_original": asdict(estimate(pairs.values, each))}
    if isinstance(measure, SetMeasure):
        return {
            side: {"value": float(values.of(side, functools.partial(_set, measure, images, size)).values[0])}
            for side, images in sides.items()
        }
    found = {side: values.of(side, functools.partial(_alone, measure, images, size)) for side, images in sides.items()}
    scores: dict[str, Any] = {}
    for side, alone in found.items():
        if isinstance(measure, JudgedMeasure):
            measure.publish(sides[side], alone.records, values.official(side))
        tasks = measure.by_group(alone.values)
        scores[side] = asdict(estimate(alone.values, each, measure.groups)) | ({"tasks": tasks} if tasks else {})
    if AGAINST in found:
        paired = difference(found[MODEL].values, found[AGAINST].values, True, each, measure.groups)
        scores["difference"] = asdict(paired) | {"verdict": paired.verdict.value}
    return scores


def _alone(
    measure: ImageMeasure | JudgedMeasure,
    images: DrawnImages,
    size: int,
    done: Callable[[int], None],
    partial: PartialJudgements,
) -> _Found:
    found = partial.open()
    for batch in images.batches(size, len(found)):
        where = slice(len(found), len(found) + len(batch))
        if isinstance(measure, JudgedMeasure):
            judgements = measure.judge(batch, where)
        else:
            judgements = [Judgement(float(value), None) for value in measure.score(batch, where)]
        partial.append(judgements)
        found += judgements
        done(where.stop)
    records = [judgement.record for judgement in found] if isinstance(measure, JudgedMeasure) else []
    return _Found(np.array([judgement.value for judgement in found]), records)


def _pairs(
    measure: PairMeasure,
    images: DrawnImages,
    others: DrawnImages,
    size: int,
    done: Callable[[int], None],
    partial: PartialJudgements,
) -> _Found:
    values = []
    for batch, other in zip(images.batches(size), others.batches(size), strict=True):
        values.append(measure.distance(batch, other))
        done(sum(map(len, values)))
    return _Found(np.concatenate(values))


def _set(
    measure: SetMeasure, images: DrawnImages, size: int, done: Callable[[int], None], partial: PartialJudgements
) -> _Found:
    value = measure.score(images.batches(size))
    done(images.count)
    return _Found(np.asarray([value]))


def _draw(
    evaluation: Evaluation, side: str, model_sha256: str, out: Path, report: Progress
) -> dict[float | None, DrawnImages]:
    """Every set of images of one model, by its guidance."""
    load = functools.cache(functools.partial(_pipeline, evaluation.sources[side], evaluation))
    return {
        guidance: draw(
            load,
            evaluation.prompts,
            out / side / f"guidance-{guidance:g}",
            DrawingSettings(model_sha256, evaluation.sampler, evaluation.steps, guidance, _dtype(evaluation)),
            evaluation.batch_size,
            functools.partial(report, f"{side}, guidance {guidance:g}"),
        )
        for guidance in evaluation.guidance
    }


def _sha256(source: str) -> str:
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise InputError(f"{source}: got neither model_index.json nor metadata.jsonl, wanted a pipeline, or pictures")
    return sha256_folder(pipeline_folder(source), without=(README, PICTURES))


def _pipeline(source: str, evaluation: Evaluation) -> Any:
    return load_pipeline(source, evaluation.dtype).to(evaluation.device)


def _identity(source: str, sha256: str, pictures: DrawnImages | None) -> dict[str, Any]:
    """Which model, and at how many bits it is if it is packed; or which pictures, and what is said of them."""
    if pictures is not None:
        return {"source": source, "sha256": sha256, "bits": None, "pictures": pictures.said}
    try:
        packed = inspect_folder(pipeline_folder(source))
    except InputError:
        return {"source": source, "sha256": sha256, "bits": None}
    bits = {"average": packed.average_bits, "true": packed.true_bits, "bytes_on_disk": packed.bytes_on_disk.total}
    return {"source": source, "sha256": sha256, "bits": bits}


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    return {"guidance": list(evaluation.guidance) if evaluation.draws else None, **_drawn(evaluation)}


def _drawn(evaluation: Evaluation) -> dict[str, Any]:
    """What every image depends on beside the model and the guidance; null where pictures were given."""
    prompts, draws = evaluation.prompts, evaluation.draws
    return {
        "sampler": evaluation.sampler if draws else None,
        "steps": evaluation.steps if draws else None,
        "seeds": seeds_said(prompts.seeds) if draws else None,
        "prompts": evaluation.prompts_source,
        "prompts_sha256": prompts.sha256,
        "images": len(prompts.texts),
        "images_per_prompt": evaluation.images_per_prompt,
        "dtype": _dtype(evaluation) if draws else None,
    }


def _dtype(evaluation: Evaluation) -> str:
    return str(evaluation.dtype).removeprefix("torch.")
