"""Every image's value by a measure, kept in files, and the scores that they come to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitsfusion.evaluation.drawn import DrawnImages
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
from bitsfusion.evaluation.setting import AGAINST, MODEL, Evaluation, Progress
from bitsfusion.io.files import read_json, sha256_json, write_json


@dataclass(frozen=True)
class _Found:
    """Values, and the records of a `JudgedMeasure`."""

    values: Values
    records: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class KeptValues:
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
        parts = [models, self.guidance, self.evaluation.record(), metric, dict(self.measure.settings)]
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


def scores_of(measure: Measure, sides: dict[str, DrawnImages], values: KeptValues) -> dict[str, Any]:
    """What a measure comes to on one set of images of each side, and on the pairs they make: means with intervals."""
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
