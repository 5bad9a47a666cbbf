"""TIFA's published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitsfusion.errors import InputError
from bitsfusion.metrics.tifa.files import read_captions, read_questions, write_image_paths

PUBLISHED = Path(__file__).parents[4] / "shared" / "data"


def entry(name, question, choices, answer):
    required = {"id": name, "caption": "A red kite.", "question": question, "choices": choices, "answer": answer}
    return required | {"element_type": "object", "element": "kite"}


ENTRIES = [
    entry("kite", "is there a kite?", ["yes", "no"], "yes") | {"coco_val_id": "17"},
    entry("cups", "how many cups are there?", ["1", "2"], "2"),
    entry("5", "what color?", ["red", "blue"], "red"),
]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
def test_the_published_files():
    captions = read_captions(PUBLISHED / "tifa_v1.0_text_inputs.json")
    assert len(captions) == 4081
    path = PUBLISHED / "tifa_sample_question_answers.json"
    questions = read_questions(path)
    sample = {caption.id for caption in read_captions(PUBLISHED / "tifa_sample_text_inputs.json")}
    assert {question.id for question in questions} == sample
    assert [question.fields() for question in questions] == json.loads(path.read_text())


def test_reads_questions_and_captions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([*ENTRIES[:-1], ENTRIES[-1] | {"id": 5, "choices": None}]))
    read = read_questions(path)
    assert [item.fields() for item in read[:-1]] == ENTRIES[:-1]
    assert read[-1].id == "5" and read[-1].choices is None
    path.write_text(json.dumps([{"id": "kite", "caption": "A red kite.", "coco_val_id": "17"}]))
    (caption,) = read_captions(path)
    assert caption.fields() == {"id": "kite", "caption": "A red kite.", "coco_val_id": "17"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([ENTRIES[0], {**ENTRIES[1], "answer": 2}], r"entry 1 \(cups, how many cups are there\?\): answer: .*got 2"),
        ([{"id": "kite"}], r"entry 0 \(kite\): caption: .*and 3 more"),
        (["kite"], "entry 0: "),
        ([], "no entry, wanted questions"),
        ({"kite": []}, "got dict, wanted a list of questions"),
    ],
)
def test_a_bad_question_is_named(tmp_path, content, message):
    (tmp_path / "questions.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_questions(tmp_path / "questions.json")
    assert "\n" not in str(caught.value) and "questions.json" in str(caught.value)


def test_captions_are_one_an_id(tmp_path):
    caption = {"id": "kite", "caption": "A red kite."}
    (tmp_path / "captions.json").write_text(json.dumps([caption, caption | {"id": "cups"}, caption]))
    with pytest.raises(InputError, match=r"entry 2: got id 'kite' again \(entry 0\)"):
        read_captions(tmp_path / "captions.json")


def test_the_map_that_is_written(tmp_path):
    inside, outside = tmp_path / "run" / "in" / "0.png", tmp_path / "1.png"
    inside.parent.mkdir(parents=True)
    inside.touch()
    outside.touch()
    write_image_paths(tmp_path / "run" / "images.json", {"a": inside, "b": outside})
    found = json.loads((tmp_path / "run" / "images.json").read_text())
    assert found == {"a": "in/0.png", "b": str(outside.resolve())}
