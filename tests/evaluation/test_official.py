"""GenEval and TIFA through `bitsfusion evaluate`: the published files in, the published files out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitsfusion.cli.evaluate import _guidance
from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import TASKS
from bitsfusion.errors import InputError
from bitsfusion.evaluation.evaluate import evaluate
from bitsfusion.evaluation.official import tifa_measure
from bitsfusion.evaluation.prompts import file_prompts
from bitsfusion.evaluation.setting import Evaluation
from bitsfusion.metrics.geneval import geneval_summary
from bitsfusion.metrics.geneval.files import read_results
from bitsfusion.metrics.tifa.files import read_captions, read_questions
from bitsfusion.metrics.tifa.scores import TifaScores
from bitsfusion.pipelines.load import EMBEDDED

from ..command import refusal, run

STEPS = 2


EVALUATE = ("evaluate", EMBEDDED, "--sampler", "ddim", "--steps", STEPS, "--quiet")


def test_geneval_by_the_official_rules(tmp_path, capsys):
    lines = [json.dumps(prompt.metadata()) for prompt in QUICK.prompt_set("test", 1)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--prompts", str(tmp_path / "prompts.jsonl"), "--metrics", "geneval", "--detector", "world"]
    arguments += ["--images-per-prompt", "2", "--guidance", "2,7.5", "--out", str(tmp_path / "out")]
    assert run(*EVALUATE, *arguments, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    tree = tmp_path / "out" / "geneval" / "model" / "guidance-7.5"
    results = read_results(tree / "results.jsonl")
    assert [line.filename for line in results] == [
        str(tree / f"{prompt:05d}" / "samples" / f"{sample:04d}.png") for prompt in range(6) for sample in range(2)
    ]
    assert [line.metadata for line in results[::2]] == lines
    entry = scores["results"][1]
    assert entry["guidance"] == 7.5 and list(entry["model"]["tasks"]) == list(TASKS)
    assert entry["model"]["mean"] == pytest.approx(geneval_summary(line.result() for line in results).overall)
    assert entry["of"]["settings"]["thresholds"]["counting_confidence"] == 0.9
    assert entry["of"]["model"]["sha256"] == scores["model"]["sha256"] and entry["of"]["steps"] == STEPS

    (tree / "results.jsonl").unlink()
    assert run(*EVALUATE, *arguments) == 0  # nothing is drawn or judged again, the files are there again
    assert read_results(tree / "results.jsonl") == results


class Brightness:
    """Says yes of bright images and "two" of others."""

    name = "brightness"

    def answer(self, images, questions, choices):
        return ["yes" if image.mean() > 60 else "two" for image in images]


class First:
    """The first choice."""

    name = "first"

    def nearest(self, answers, choices):
        return [group[0] for group in choices]


@pytest.fixture
def tifa(tmp_path) -> tuple[Path, Path]:
    captions = [{"id": "a", "caption": "a red circle"}, {"id": "b", "caption": "two squares"}]
    asked = [
        (0, "is there a circle?", ["yes", "no"], "yes", "object"),
        (1, "how many squares?", ["2", "3"], "2", "counting"),
        (1, "are there squares?", ["yes", "no"], "no", "object"),
    ]
    questions = [
        {**captions[which], "question": text, "choices": choices, "answer": answer, "element_type": kind}
        for which, text, choices, answer, kind in asked
    ]
    for name, content in (("captions", captions), ("questions", questions)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path / "captions.json", tmp_path / "questions.json"


def test_tifa_writes_the_official_result(tifa, tmp_path):
    prompts = file_prompts(tifa[0], 3)
    measure = tifa_measure(Brightness(), First(), read_captions(tifa[0]), read_questions(tifa[1]))
    evaluation = Evaluation(EMBEDDED, EMBEDDED, prompts, "captions", 1, "ddim", STEPS, (4.0,), 2)
    (entry,) = evaluate(evaluation, [measure], tmp_path / "out")["results"]
    folder = tmp_path / "out" / "tifa" / "model" / "guidance-4"
    result = TifaScores.model_validate_json((folder / "result.json").read_text())
    # The first question is right either way; of caption b's, 2 or yes, one is right whatever is answered.
    assert result.caption_scores == {"a": 1.0, "b": 0.5}
    assert entry["model"]["mean"] == result.tifa_average == 0.75
    assert result.tifa_stdev == pytest.approx(np.std([1, 0.5], ddof=1))
    assert result.accuracy_by_type == {"object": 0.5, "counting": 1.0}
    assert entry["difference"]["verdict"] == "no difference shown"
    assert entry["of"]["settings"]["vqa"] == "brightness" and entry["of"]["settings"]["questions"] == 3
    images = json.loads((folder / "images.json").read_text())
    drawn = tmp_path / "out" / "model" / "guidance-4"
    assert (folder / images["b"]).resolve() == (drawn / "00001.png").resolve()

    pictures = Evaluation(str(drawn), None, prompts, "captions")  # the same, drawn by whomsoever
    (again,) = evaluate(pictures, [measure], tmp_path / "again")["results"]
    folder = tmp_path / "again" / "tifa" / "model" / "given"
    assert again["model"] == entry["model"]
    assert TifaScores.model_validate_json((folder / "result.json").read_text()) == result
    images = json.loads((folder / "images.json").read_text())
    assert (folder / images["b"]).resolve() == (drawn / "00001.png").resolve()


class Dying(Brightness):
    """Is killed at its second image."""

    asked = 0

    def answer(self, images, questions, choices):
        self.asked += 1
        if self.asked == 2:
            raise KeyboardInterrupt
        return super().answer(images, questions, choices)


def test_a_killed_measurement_asks_nothing_twice(tifa, tmp_path):
    prompts = file_prompts(tifa[0], 3)
    captions, questions = read_captions(tifa[0]), read_questions(tifa[1])
    evaluation = Evaluation(EMBEDDED, None, prompts, "captions", 1, "ddim", STEPS, (4.0,), 1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, [tifa_measure(Dying(), First(), captions, questions)], tmp_path / "out")
    (partial,) = (tmp_path / "out" / "values").iterdir()
    assert len(partial.read_text().splitlines()) == 2  # what it is of, and the first image
    with open(partial, "a") as file:
        file.write('{"value": 0.5, "rec')  # as a kill leaves it
    again = Dying()
    (entry,) = evaluate(evaluation, [tifa_measure(again, First(), captions, questions)], tmp_path / "out")["results"]
    assert again.asked == 1 and entry["model"]["mean"] == 0.75
    assert [path.suffix for path in (tmp_path / "out" / "values").iterdir()] == [".json"]


def test_a_caption_without_questions_is_refused(tifa):
    with pytest.raises(InputError, match="no question for 1 captions such as b"):
        tifa_measure(Brightness(), First(), read_captions(tifa[0]), read_questions(tifa[1])[:1])


def test_a_sweep_of_guidance():
    assert _guidance("2.5-9.5") == (2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5)
    assert _guidance("1,3-4.5,3") == (1, 3, 4)
    for wrong in ("9-2", "-3", "2-inf", "nan", ""):
        with pytest.raises(InputError, match=r"wanted numbers such as 3\.5,7\.5"):
            _guidance(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "tifa"], "tifa: wanted TIFA's captions"),
        (
            ["--metrics", "tifa", "--prompts", "CAPTIONS", "--questions", "QUESTIONS", "--images-per-prompt", "4"],
            "got 4",
        ),
        (
            ["--metrics", "tifa", "--prompts", "CAPTIONS", "--questions", "QUESTIONS", "--sentence-encoder", "./no"],
            "./no",
        ),
        (["--metrics", "geneval", "--prompts", "CAPTIONS"], "wanted GenEval's"),
        (["--metrics", "geneval", "--prompts", "KITE", "--detector", "world"], "got 'kite', wanted one of circle"),
        (["--metrics", "geneval", "--prompts", "KITE", "--detector", "./no"], "wanted a Mask2Former model"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tifa, tmp_path, capsys):
    kite = {"tag": "single_object", "include": [{"class": "kite", "count": 1}], "prompt": "a photo of a kite"}
    (tmp_path / "kite.jsonl").write_text(json.dumps(kite))
    files = {"CAPTIONS": str(tifa[0]), "QUESTIONS": str(tifa[1]), "KITE": str(tmp_path / "kite.jsonl")}
    options = [files.get(part, part) for part in arguments]
    assert message in refusal(capsys, *EVALUATE, *options, "--out", tmp_path / "out")
