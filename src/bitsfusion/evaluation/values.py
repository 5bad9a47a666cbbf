"""Every picture's value by a measure, kept in files where asked for, and the scores that the values come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitsfusion.evaluation.estimates import Difference, difference, estimate
from bitsfusion.evaluation.measures import Judgement, Measure, PairMeasure, SetMeasure, Values
from bitsfusion.evaluation.pictures import PictureFiles
from bitsfusion.evaluation.setting import AGAINST, MODEL, Evaluation
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.journal import Journal
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.progress import Progress, ProgressSink


@dataclass(frozen=True)
class Measured:
    """The value of each picture, or the one of a whole set; and the records of a measure that keeps some."""

    values: Values
    records: list[Any] = field(default_factory=list)


def judgement_journal(path: Path, identity: str) -> Journal[Judgement]:
    """The judgements of a measurement that is under way, an image each, in order."""

    def from_text(line: str) -> Judgement:
        values = json.loads(line)
        return Judgement(float(values["value"]), values["record"])

    return Journal(path, identity, lambda judgement: json.dumps(asdict(judgement)), from_text)


def measured(
    measure: Measure,
    pictures: PictureFiles,
    others: PictureFiles | None,
    batch_size: int,
    progress: Progress,
    partial: Journal[Judgement],
) -> Measured:
    """`measure` of `pictures`.

    Args:
        others: what a `PairMeasure` compares with, one for one.
        batch_size: pictures in memory at a time.
        partial: judgements of single pictures are kept there; those that are there already are not made again.
    """
    if isinstance(measure, SetMeasure):
        value = measure.score(pictures.batches(batch_size))
        progress(pictures.count, pictures.count)
        return Measured(np.asarray([value]))
    if isinstance(measure, PairMeasure):
        assert others is not None
        distances = np.zeros(0)
        for batch, other in zip(pictures.batches(batch_size), others.batches(batch_size), strict=True):
            distances = np.concatenate([distances, measure.distance(batch, other)])
            progress(len(distances), pictures.count)
        return Measured(distances)
    found = partial.open()
    for batch in pictures.batches(batch_size, len(found)):
        judgements = measure.judge(batch, slice(len(found), len(found) + len(batch)))
        partial.append(judgements)
        found += judgements
        progress(len(found), pictures.count)
    records = [one.record for one in found] if measure.publish is not None else []
    return Measured(np.array([one.value for one in found]), records)


@dataclass(frozen=True)
class KeptValues:
    """The values of one measure on one set of pictures of each side, kept in files below `out`."""

    out: Path
    measure: Measure
    guidance: float | None
    evaluation: Evaluation
    hashes: Mapping[str, str]
    sides: Mapping[str, PictureFiles]
    progress: ProgressSink

    def of(self, side: str) -> Measured:
        """From the file if it is of the same pictures and settings, otherwise measured."""
        metric = self.measure.metric.value
        path = self.out / "values" / f"{metric}-{side}-{self._set}.json"
        models = self.hashes if isinstance(self.measure, PairMeasure) else self.hashes[side]
        parts = [models, self.guidance, self.evaluation.record(), metric, dict(self.measure.settings)]
        identity = sha256_json(parts)
        count = self.sides[side].count
        stored = read_json(path) if path.exists() else None
        if isinstance(stored, dict) and stored.get("identity") == identity:
            values = np.asarray(stored.get("values"), dtype=np.float64)
            if values.shape == ((1,) if isinstance(self.measure, SetMeasure) else (count,)):
                return Measured(values, stored.get("records", []))
        partial = judgement_journal(path.with_suffix(".partial.jsonl"), identity)
        found = measured(
            self.measure,
            self.sides[side],
            self.sides.get(AGAINST),
            self.evaluation.batch_size,
            self.progress.step(f"{metric}, {side}, {self._set}"),
            partial,
        )
        records = {"records": found.records} if found.records else {}
        write_json(path, {"identity": identity, "values": found.values.tolist(), **records})
        partial.remove()
        return found

    def scores(self) -> tuple[dict[str, Any], Difference | None]:
        """What the values come to, means with intervals; and the difference of two models where there is one."""
        each, measure = self.evaluation.images_per_prompt, self.measure
        if isinstance(measure, PairMeasure):
            return {"to_original": asdict(estimate(self.of(MODEL).values, each))}, None
        found = {side: self.of(side) for side in self.sides}
        if isinstance(measure, SetMeasure):
            return {side: {"value": float(whole.values[0])} for side, whole in found.items()}, None
        scores: dict[str, Any] = {}
        for side, alone in found.items():
            if measure.publish is not None:
                measure.publish(self.sides[side], alone.records, self.out / measure.metric.value / side / self._set)
            tasks = measure.by_group(alone.values)
            scores[side] = asdict(estimate(alone.values, each, measure.groups)) | ({"tasks": tasks} if tasks else {})
        if AGAINST not in found:
            return scores, None
        return scores, difference(found[MODEL].values, found[AGAINST].values, each, measure.groups)

    @property
    def _set(self) -> str:
        return "given" if self.guidance is None else f"guidance-{self.guidance:g}"
