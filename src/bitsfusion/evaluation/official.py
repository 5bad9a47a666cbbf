"""GenEval and TIFA as measures whose results are also written in their evaluators' own files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bitsfusion.errors import InputError
from bitsfusion.evaluation.measures import ImageMeasure, Judgement, Metric
from bitsfusion.evaluation.pictures import Images, PictureFiles
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.texts import write_json
from bitsfusion.metrics.geneval.evaluator import Evaluator
from bitsfusion.metrics.geneval.files import ResultLine, image_path, write_metadata, write_results
from bitsfusion.metrics.geneval.prompts import GenEvalPrompt, class_names
from bitsfusion.metrics.tifa.files import write_image_paths
from bitsfusion.metrics.tifa.matcher import ChoiceMatcher
from bitsfusion.metrics.tifa.questions import AnsweredQuestion, TifaCaption, TifaQuestion
from bitsfusion.metrics.tifa.scores import TifaScores, answered
from bitsfusion.metrics.tifa.vqa import VqaModel


def geneval_measure(evaluator: Evaluator, prompts: Sequence[GenEvalPrompt], images_per_prompt: int) -> ImageMeasure:
    """GenEval by the published rules; writes the official tree of images and results.jsonl.

    Args:
        prompts: one of each prompt; its images lie beside each other.

    Raises:
        InputError: the detector does not know a class of the prompts.
    """
    evaluator.detector.check_classes(class_names(prompts))
    each = [prompt for prompt in prompts for _ in range(images_per_prompt)]

    def judge(images: Images, where: slice) -> list[Judgement]:
        lines = [evaluator.evaluate(image, prompt, "") for image, prompt in zip(images, each[where], strict=True)]
        return [Judgement(float(line.correct), asdict(line)) for line in lines]

    def publish(images: PictureFiles, records: Sequence[Any], folder: Path) -> None:
        if any(path.resolve().is_relative_to(folder.resolve()) for path in images.paths):
            raise InputError(
                f"{folder}: got the pictures that are scored where results are written, wanted another --out"
            )
        write_metadata(folder, prompts)
        lines = []
        for index, record in enumerate(records):
            path = image_path(folder, *divmod(index, images_per_prompt))
            _link(images.paths[index], path)
            lines.append(ResultLine(**{**record, "filename": str(path)}))
        write_results(folder / "results.jsonl", lines)

    return ImageMeasure(Metric.GENEVAL, judge, evaluator.settings(), [prompt.tag for prompt in each], publish)


def tifa_measure(
    vqa: VqaModel, matcher: ChoiceMatcher, captions: Sequence[TifaCaption], questions: Sequence[TifaQuestion]
) -> ImageMeasure:
    """TIFA, an image a caption; writes the official map of images and the official result.

    Raises:
        InputError: a caption has no question.
    """
    asked: dict[str, list[TifaQuestion]] = {caption.id: [] for caption in captions}
    for question in questions:
        if question.id in asked:
            asked[question.id].append(question)
    if silent := [name for name, about in asked.items() if not about]:
        raise InputError(f"tifa: got no question for {len(silent)} captions such as {silent[0]}, wanted some for each")
    by_image = [asked[caption.id] for caption in captions]

    def judge(images: Images, where: slice) -> list[Judgement]:
        found = []
        for image, about in zip(images, by_image[where], strict=True):
            answers = answered(np.stack([image] * len(about)), about, vqa, matcher)
            value = sum(answer.scores for answer in answers) / len(answers)
            found.append(Judgement(value, [answer.fields() for answer in answers]))
        return found

    def publish(images: PictureFiles, records: Sequence[Any], folder: Path) -> None:
        paths = {caption.id: path for caption, path in zip(captions, images.paths, strict=True)}
        write_image_paths(folder / "images.json", paths)
        answers = [AnsweredQuestion.model_validate(answer) for record in records for answer in record]
        write_json(folder / "result.json", TifaScores.from_answers(answers).to_official())

    settings = {
        "vqa": vqa.name,
        "choices": matcher.name,
        "questions": sum(map(len, by_image)),
        "questions_sha256": sha256_json([[question.fields() for question in about] for about in by_image]),
    }
    return ImageMeasure(Metric.TIFA, judge, settings, publish=publish)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
