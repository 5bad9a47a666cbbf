"""One model, and the original beside it, on the same prompts and seeds: images, metrics, scores.json (section 7).

In a model's place there may be a folder of pictures that it, or any other generator, has drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from diffusers import DiffusionPipeline

from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.errors import InputError
from bitsfusion.evaluation.drawing import Sampling, draw_into
from bitsfusion.evaluation.estimates import Difference, verdicts
from bitsfusion.evaluation.measures import Measure
from bitsfusion.evaluation.pictures import PictureFiles, matching_pictures
from bitsfusion.evaluation.setting import Evaluation
from bitsfusion.evaluation.values import KeptValues
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.io.pictures import holds_pictures
from bitsfusion.io.texts import write_json
from bitsfusion.io.work_folder import folder_lock
from bitsfusion.pipelines.folder import CARD
from bitsfusion.pipelines.load import load_pipeline, pipeline_folder
from bitsfusion.progress import SILENT, ProgressSink

SCHEMA_VERSION = 1
PACKAGES = ("bitsfusion", "torch", "diffusers", "transformers", "torchmetrics", "numpy", "scipy", "pillow")


class Scores(TypedDict):
    """The content of scores.json.

    Fields:
        schema_version: of the file.
        model, against: which model or pictures a side is: source, SHA-256, bits if it is packed.
        settings: prompts, sampler, steps, guidance and the like.
        metrics: name -> settings.
        results: one for each metric and guidance: values of both sides, intervals, the difference and its verdict.
        packages: name -> version.
    """

    schema_version: int
    model: dict[str, Any]
    against: NotRequired[dict[str, Any]]
    settings: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    results: list[dict[str, Any]]
    packages: dict[str, str]


def evaluate(evaluation: Evaluation, measures: Sequence[Measure], out: Path, progress: ProgressSink = SILENT) -> Scores:
    """Draws what is missing under `out`, measures what is not measured, and writes scores.json: its content.

    `out` gets model/ and against/ with a folder of PNG files for each guidance, and values/ with every image's
    values. A killed call continues with the same arguments.

    Raises:
        InputError: no such model, or `out` holds images of others or another process is working there; or whatever a
            measure refuses.
    """
    sources, from_pictures = evaluation.sources, evaluation.picture_sides
    if from_pictures and len(evaluation.guidance) > 1:
        raise InputError(f"guidance: got {len(evaluation.guidance)} values beside a folder of pictures, wanted one")
    pictures = {
        side: matching_pictures(Path(sources[side]), evaluation.prompts) for side in sorted(evaluation.picture_sides)
    }
    hashes = {side: pictures[side].sha256 if side in pictures else _sha256(sources[side]) for side in sources}
    identities = {side: _identity(source, hashes[side], pictures.get(side)) for side, source in sources.items()}
    with folder_lock(out, out / ".lock"):
        drawn: dict[str, dict[float | None, PictureFiles]] = {}
        for side in sources:
            if side in pictures:
                drawn[side] = dict.fromkeys(evaluation.set_guidance, pictures[side])
            else:
                drawn[side] = _draw(evaluation, side, hashes[side], out, progress)
        results: list[dict[str, Any]] = []
        differences: dict[int, Difference] = {}
        for guidance in evaluation.set_guidance:
            sides = {side: drawn[side][guidance] for side in sources}
            for measure in measures:
                kept = KeptValues(out, measure, guidance, evaluation, hashes, sides, progress)
                found, change = kept.scores()
                if change is not None:
                    differences[len(results)] = change
                results.append(
                    {
                        "metric": measure.metric.value,
                        "guidance": guidance,
                        **found,
                        "of": {**evaluation.record(), **identities, "settings": dict(measure.settings)},
                    }
                )
        for (place, change), verdict in zip(differences.items(), verdicts(list(differences.values())), strict=True):
            shown = {name: value for name, value in asdict(change).items() if name in ("mean", "low", "high", "p")}
            results[place]["difference"] = shown | {"verdict": verdict.value}
        scores: Scores = {
            "schema_version": SCHEMA_VERSION,
            "model": identities["model"],
            "settings": {
                "guidance": list(evaluation.guidance) if evaluation.draws else None,
                **evaluation.record(),
            },
            "metrics": {measure.metric.value: dict(measure.settings) for measure in measures},
            "results": results,
            "packages": {name: metadata.version(name) for name in PACKAGES},
        }
        if "against" in identities:
            scores["against"] = identities["against"]
        write_json(out / "scores.json", scores)
    return scores


def _draw(
    evaluation: Evaluation, side: str, model_sha256: str, out: Path, progress: ProgressSink
) -> dict[float | None, PictureFiles]:
    """Every set of pictures of one model, by its guidance."""
    load = functools.cache(functools.partial(_pipeline, evaluation.sources[side], evaluation))
    return {
        guidance: draw_into(
            out / side / f"guidance-{guidance:g}",
            load,
            evaluation.prompts,
            Sampling(evaluation.sampler, evaluation.steps, guidance, evaluation.batch_size, evaluation.size),
            model_sha256,
            evaluation.dtype_name,
            progress.step(f"{side}, guidance {guidance:g}"),
        )
        for guidance in evaluation.guidance
    }


def check_source(source: str) -> None:
    """Refuses a folder that is neither a pipeline nor pictures.

    Raises:
        InputError: says so.
    """
    if Path(source).is_dir() and not holds_pictures(source) and not (Path(source) / "model_index.json").is_file():
        raise InputError(f"{source}: got neither model_index.json nor metadata.jsonl, wanted a pipeline, or pictures")


def _sha256(source: str) -> str:
    check_source(source)
    return sha256_folder(pipeline_folder(source), without=CARD)


def _pipeline(source: str, evaluation: Evaluation) -> DiffusionPipeline:
    return load_pipeline(source, evaluation.dtype).to(evaluation.device)


def _identity(source: str, sha256: str, pictures: PictureFiles | None) -> dict[str, Any]:
    """Which model, and at how many bits it is if it is packed; or which pictures, and what is said of them."""
    if pictures is not None:
        return {"source": source, "sha256": sha256, "bits": None, "pictures": pictures.metadata}
    try:
        packed = inspect_folder(pipeline_folder(source))
    except InputError:
        return {"source": source, "sha256": sha256, "bits": None}
    bits = {"average": packed.average_bits, "true": packed.true_bits, "bytes_on_disk": packed.bytes_on_disk.total}
    return {"source": source, "sha256": sha256, "bits": bits}
