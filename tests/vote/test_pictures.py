from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.vote.conftest import PROMPTS, write_pictures

from bitsfusion.errors import InputError
from bitsfusion.vote.pictures import read_study
from bitsfusion.vote.prompts import Topic, read_topics

PARTI = Path(__file__).parents[3] / "shared" / "data" / "PartiPrompts.tsv"


def test_pairs_have_their_prompts_and_topics(study, folders):
    assert [(pair.prompt, pair.topic.category, pair.topic.challenge) for pair in study.pairs] == PROMPTS
    assert study.names == ("secret_one", "secret_two") and study.left_out == (0, 0)
    for index, pair in enumerate(study.pairs):
        assert (pair.a.path, pair.b.path) == tuple(folder / f"{index:04d}.png" for folder in folders)


def test_what_has_no_counterpart_is_counted(tmp_path):
    a = write_pictures(tmp_path / "a", ["one", "two", "two", "three"], 1)
    b = write_pictures(tmp_path / "b", ["four", "two", "one"], 2)
    study = read_study(a, b)
    assert [pair.prompt for pair in study.pairs] == ["one", "two"]
    assert study.left_out == (2, 1)
    assert [pair.b.path.name for pair in study.pairs] == ["0002.png", "0001.png"]
    only = read_study(a, b, {"two": Topic("x", "y")})
    assert [pair.topic for pair in only.pairs] == [Topic("x", "y")] and only.left_out == (3, 2)


def test_a_prompt_several_times_pairs_in_order(tmp_path):
    a = write_pictures(tmp_path / "a", ["one", "two", "one"], 1)
    b = write_pictures(tmp_path / "b", ["one", "one", "two"], 2)
    assert [(p.prompt, p.a.path.name, p.b.path.name) for p in read_study(a, b).pairs] == [
        ("one", "0000.png", "0000.png"),
        ("two", "0001.png", "0002.png"),
        ("one", "0002.png", "0001.png"),
    ]


def test_genevals_tree(tmp_path):
    for side in "ab":
        for index, prompt in enumerate(("a bench", "two clocks")):
            tree = tmp_path / side / f"{index:05d}"
            (tree / "samples").mkdir(parents=True)
            (tree / "metadata.jsonl").write_text(json.dumps({"tag": "x", "include": [], "prompt": prompt}))
            for sample in range(2):
                Image.new("RGB", (4, 4)).save(tree / "samples" / f"{sample:04d}.png")
    study = read_study(tmp_path / "a", tmp_path / "b")
    assert [pair.prompt for pair in study.pairs] == ["a bench"] * 2 + ["two clocks"] * 2
    assert study.pairs[3].b.path == tmp_path / "b/00001/samples/0001.png"


def test_names_are_the_shortest_that_differ(tmp_path):
    a, b = (write_pictures(tmp_path / name / "images", ["x"], 1) for name in ("fp", "bits"))
    assert read_study(a, b).names == ("fp/images", "bits/images")


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "link.png", "sub/link.png"])
def test_nothing_outside_the_folder(tmp_path, name):
    b = write_pictures(tmp_path / "b", ["x"], 1)
    a = write_pictures(tmp_path / "a", ["x"], 1)
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (a / "link.png").symlink_to(tmp_path / "outside.png")
    (a / "sub").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "outside.png")
    (a / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
    with pytest.raises(InputError, match="lies outside"):
        read_study(a, b)


def test_links_inside_the_folder_are_followed(tmp_path):
    a, b = (write_pictures(tmp_path / name, ["x"], 1) for name in "ab")
    (a / "0000.png").rename(a / "real.png")
    (a / "0000.png").symlink_to("real.png")
    assert read_study(a, b).pairs[0].a.path == a / "real.png"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": "notes.txt", "text": "x"}', "notes.txt: wanted a PNG, JPEG or WebP"),
        ('{"file_name": "none.png", "text": "x"}', "none.png: no such picture"),
        ('{"file_name": 3, "text": "x"}', 'metadata.jsonl, line 1: wanted {"file_name"'),
        ("[]", "line 1"),
        ("{", "line 1: wanted lines of JSON"),
    ],
)
def test_a_broken_folder_is_one_line(tmp_path, line, words):
    a, b = (write_pictures(tmp_path / name, ["x"], 1) for name in "ab")
    (a / "notes.txt").write_text("secret")
    (a / "metadata.jsonl").write_text(line)
    with pytest.raises(InputError) as error:
        read_study(a, b)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_half_a_picture_is_none(tmp_path):
    a, b = (write_pictures(tmp_path / name, ["x"], 1, size=64) for name in "ab")
    whole = (a / "0000.png").read_bytes()
    (a / "0000.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="wanted a PNG"):
        read_study(a, b)


def test_folders_that_cannot_be_compared(tmp_path):
    a, b = (write_pictures(tmp_path / name, [name], 1) for name in "ab")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="wanted prompts in common"):
        read_study(a, b)
    with pytest.raises(InputError, match="the same folder twice"):
        read_study(a, a)
    with pytest.raises(InputError, match="no such folder"):
        read_study(a, tmp_path / "none")
    with pytest.raises(InputError, match="got neither"):
        read_study(a, tmp_path / "empty")


def test_topics_of_a_file(tsv):
    topics = read_topics(tsv)
    assert topics['a sign that says "open"'] == Topic("Vehicles", "Writing & Symbols") and len(topics) == len(PROMPTS)


def test_topics_of_a_file_from_a_spreadsheet(tmp_path):
    """A byte order mark, the line ends of Windows, and a prompt with a line separator of Unicode in it."""
    rows = "Prompt\tCategory\tChallenge\r\na\u2028cat\tAnimals\tBasic\r\na dog\tAnimals\tBasic\r\n"
    (tmp_path / "p.tsv").write_bytes(rows.encode("utf-8-sig"))
    assert read_topics(tmp_path / "p.tsv") == dict.fromkeys(["a\u2028cat", "a dog"], Topic("Animals", "Basic"))


@pytest.mark.parametrize("text", ["Prompt\tCategory\na\tb\n", "Prompt\tCategory\tChallenge\n\tx\ty\n", "a\nb\n"])
def test_a_tsv_of_another_form(tmp_path, text):
    (tmp_path / "p.tsv").write_text(text)
    with pytest.raises(InputError, match=r"p\.tsv, row 2: wanted the columns Prompt, Category and Challenge"):
        read_topics(tmp_path / "p.tsv")


@pytest.mark.skipif(not PARTI.exists(), reason="the published prompts are not here")
def test_the_real_partiprompts():
    """1632 prompts in 12 categories and 11 challenges (Yu et al., 2022)."""
    topics = read_topics(PARTI)
    assert len(topics) == 1632
    assert len({topic.category for topic in topics.values()}) == 12
    assert len({topic.challenge for topic in topics.values()}) == 11
