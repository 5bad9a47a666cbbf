"""GenEval's files: the tree of images that the evaluator reads (`io.pictures`) and the results that it writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bitsfusion.errors import InputError
from bitsfusion.io.pictures import METADATA_NAME, read_pictures
from bitsfusion.io.schema import parse
from bitsfusion.io.texts import json_lines, write_text
from bitsfusion.metrics.geneval.prompts import GenEvalPrompt
from bitsfusion.metrics.geneval.scoring import Detections, Verdict
from bitsfusion.metrics.geneval.summary import GenEvalResult


@dataclass(frozen=True)
class ResultLine:
    """A line of results.jsonl.

    Fields:
        reason: why it is not correct, one reason a line; "" if it is.
        metadata: the prompt's line, as a string of JSON.
        details: {class: [[left, top, right, bottom, score], ...]} of the objects that counted, as a string of JSON.
    """

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str

    def result(self) -> GenEvalResult:
        """What the summary needs of it."""
        return GenEvalResult(self.tag, self.correct)


def image_path(tree: Path, prompt: int, sample: int) -> Path:
    """Where image `sample` of prompt number `prompt` lies."""
    return Path(tree) / f"{prompt:05d}" / "samples" / f"{sample:04d}.png"


def write_metadata(tree: Path, prompts: Sequence[GenEvalPrompt]) -> None:
    """Writes each prompt's folder with its metadata.jsonl; images go where `image_path` says."""
    for index, prompt in enumerate(prompts):
        write_text(Path(tree) / f"{index:05d}" / METADATA_NAME, json.dumps(prompt.metadata()) + "\n")


def tree_prompts(tree: Path) -> tuple[GenEvalPrompt, ...]:
    """The prompts of a tree of images, one of each folder that has any.

    Raises:
        InputError: there is no such tree, or a prompt is none of GenEval's.
    """
    folders = {picture.where: picture for picture in read_pictures(Path(tree))}
    return tuple(parse(GenEvalPrompt, dict(picture.metadata), picture.where) for picture in folders.values())


def result_line(filename: str, prompt: GenEvalPrompt, objects: Detections, verdict: Verdict) -> ResultLine:
    """A line from the objects that counted in an image and the verdict on it."""
    details = {name: [[*item.box, item.score] for item in seen] for name, seen in objects.items()}
    return ResultLine(
        filename,
        prompt.tag,
        prompt.prompt,
        verdict.correct,
        verdict.reason,
        json.dumps(prompt.metadata()),
        json.dumps(details),
    )


def write_results(path: Path, lines: Iterable[ResultLine]) -> None:
    """Writes results.jsonl."""
    write_text(path, "".join(json.dumps(asdict(line)) + "\n" for line in lines))


def read_results(path: Path) -> list[ResultLine]:
    """The lines of a results.jsonl, written here or by the published evaluator.

    Raises:
        InputError: there is no such file, or a line lacks something, has more, or has something of another type.
    """
    wanted = "a line of GenEval's results"
    found = []
    for where, values in json_lines(path, wanted):
        try:
            result = ResultLine(**values)
        except TypeError as error:
            raise InputError(f"{where}: wanted {wanted}, got {error}") from None
        for name, value in asdict(result).items():
            kind = bool if name == "correct" else str
            if not isinstance(value, kind):
                raise InputError(f"{where}: wanted {wanted}, with {name} a {kind.__name__}, got {value!r}")
        found.append(result)
    return found
