from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import TASKS
from bitsfusion.errors import InputError
from bitsfusion.io.pictures import read_pictures
from bitsfusion.metrics.geneval import geneval_summary
from bitsfusion.metrics.geneval.files import (
    image_path,
    read_results,
    result_line,
    tree_prompts,
    write_metadata,
    write_results,
)
from bitsfusion.metrics.geneval.prompts import GenEvalPrompt, class_names, is_geneval, read_prompts
from bitsfusion.metrics.geneval.scoring import Detection, Verdict

PUBLISHED = Path(__file__).parents[4] / "shared" / "data"
LINES = [
    '{"tag": "single_object", "include": [{"class": "kite", "count": 1}], "prompt": "a photo of a kite"}',
    '{"tag": "counting", "include": [{"class": "cup", "count": 2}], "exclude": [{"class": "cup", "count": 3}], '
    '"prompt": "a photo of two cups"}',
    '{"tag": "position", "include": [{"class": "cup", "count": 1}, {"class": "kite", "count": 1, '
    '"position": ["left of", 0]}], "prompt": "a photo of a kite left of a cup"}',
    '{"tag": "color_attr", "include": [{"class": "cup", "count": 1, "color": "pink"}, '
    '{"class": "kite", "count": 1, "color": "brown"}], "prompt": "a photo of a pink cup and a brown kite"}',
]


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(LINES) + "\n")
    return read_prompts(tmp_path / "prompts.jsonl")


def test_prompts_are_read_and_written_word_for_word(prompts, tmp_path):
    assert [json.dumps(prompt.metadata()) for prompt in prompts] == LINES
    assert class_names(prompts) == ("cup", "kite")
    assert is_geneval(tmp_path / "prompts.jsonl")
    (tmp_path / "other.jsonl").write_text('{"prompt": "a kite"}\n')
    assert not is_geneval(tmp_path / "other.jsonl")


def test_the_drawn_worlds_prompts_are_of_the_same_form():
    for prompt in QUICK.prompt_set("test", 5):
        assert GenEvalPrompt.model_validate(prompt.metadata()).tag == prompt.tag


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
def test_the_published_prompts():
    prompts = read_prompts(PUBLISHED / "geneval_metadata.jsonl")
    counts = {tag: sum(prompt.tag == tag for prompt in prompts) for tag in TASKS}
    assert len(prompts) == 553
    assert counts == dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))
    names = (PUBLISHED / "geneval_object_names.txt").read_text().splitlines()
    assert len(names) == 80 and set(class_names(prompts)) <= set(names)
    lines = (PUBLISHED / "geneval_metadata.jsonl").read_text().splitlines()
    assert [json.dumps(prompt.metadata()) for prompt in prompts] == lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: wanted GenEval's prompts"),
        ('{"tag": "shapes", "prompt": "p"}', "tag: got 'shapes', wanted one of single_object"),
        ('{"tag": "colors", "include": [{"class": "cup", "count": 0}], "prompt": "p"}', "include.0.count"),
        ('{"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "mauve"}], "prompt": "p"}', "'mauve'"),
        ('{"tag": "position", "include": [{"class": "a", "count": 1, "position": ["in", 0]}], "prompt": "p"}', "'in'"),
        (
            '{"tag": "position", "include": [{"class": "a", "count": 1, "position": ["above", 0]}], "prompt": "p"}',
            "wanted an earlier one",
        ),
        ('{"tag": "colors", "includes": [], "prompt": "p"}', "includes"),
        ("", "got no prompts"),
    ],
)
def test_refuses_what_is_no_prompt(line, message, tmp_path):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(caught.value) and "p.jsonl" in str(caught.value)


def test_the_tree_of_images(prompts, tmp_path):
    tree = tmp_path / "tree"
    write_metadata(tree, prompts)
    for prompt, sample in ((0, 0), (0, 1), (3, 0)):
        path = image_path(tree, prompt, sample)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (tree / "00000" / "samples" / "grid.png").write_bytes(b"")
    (tree / "notes").mkdir()
    assert [str(picture.path.relative_to(tree)) for picture in read_pictures(tree)] == [
        "00000/samples/0000.png",
        "00000/samples/0001.png",
        "00003/samples/0000.png",
    ]
    assert tree_prompts(tree) == (prompts[0], prompts[3])
    assert json.loads((tree / "00001" / "metadata.jsonl").read_text()) == json.loads(LINES[1])
    (tree / "00003" / "metadata.jsonl").write_text('{"prompt": "a kite"}')
    with pytest.raises(InputError, match=r"00003/metadata.jsonl, line 1: tag"):
        tree_prompts(tree)
    (tree / "00000" / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"00000/metadata.jsonl: wanted lines of JSON"):
        tree_prompts(tree)


def test_result_lines(prompts, tmp_path):
    box = Detection((1.0, 2.0, 3.0, 4.5), 0.5)
    lines = [
        result_line("tree/00000/samples/0000.png", prompts[0], {"kite": [box]}, Verdict(True, "")),
        result_line("tree/00001/samples/0000.png", prompts[1], {}, Verdict(False, "expected cup>=2, found 0")),
    ]
    write_results(tmp_path / "results.jsonl", lines)
    assert read_results(tmp_path / "results.jsonl") == lines
    raw = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert list(raw[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert raw[0]["correct"] is True and raw[1]["reason"] == "expected cup>=2, found 0"
    assert raw[0]["metadata"] == LINES[0]
    assert json.loads(raw[0]["details"]) == {"kite": [[1.0, 2.0, 3.0, 4.5, 0.5]]}


def test_reads_the_published_evaluators_lines(tmp_path):
    """pandas writes slashes as \\/ and no spaces."""
    line = (
        r'{"filename":"out\/00000\/samples\/0000.png","tag":"%s","prompt":"p","correct":%s,"reason":"","metadata":"{}",'
        r'"details":"{\"kite\": [[1.5, 2.0, 3.0, 4.0, 0.99]]}"}'
    )
    verdicts = [(tag, flag) for tag in TASKS for flag in ("true", "false" if tag == "position" else "true")]
    (tmp_path / "results.jsonl").write_text("\n".join(line % pair for pair in verdicts))
    found = read_results(tmp_path / "results.jsonl")
    assert found[0].filename == "out/00000/samples/0000.png"
    assert geneval_summary(item.result() for item in found).overall == pytest.approx(5.5 / 6)


LINE = {"filename": "0.png", "tag": "colors", "prompt": "p", "correct": True, "reason": "", "metadata": "{}"}
LINE["details"] = "{}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "got Expecting"),
        ("[1]", "got "),
        (json.dumps({"tag": "colors"}), "got "),
        (json.dumps(LINE | {"score": 1}), "'score'"),
        (json.dumps(LINE | {"correct": "false"}), "with correct a bool, got 'false'"),  # a string would count as true
        (json.dumps(LINE | {"correct": 0}), "with correct a bool, got 0"),
        (json.dumps(LINE | {"tag": None}), "with tag a str, got None"),
    ],
)
def test_refuses_what_is_no_line_of_results(line, message, tmp_path):
    (tmp_path / "results.jsonl").write_text(json.dumps(LINE) + "\n" + line)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_results(tmp_path / "results.jsonl")
    assert "line 2: wanted a line of GenEval's results" in str(caught.value) and "\n" not in str(caught.value)
