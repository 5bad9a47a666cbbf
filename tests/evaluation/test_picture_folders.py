"""`bitsfusion evaluate` on folders of pictures that somebody else has drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from bitsfusion.embedded import SCORER_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.evaluation.pictures import matching_pictures
from bitsfusion.evaluation.prompts import PromptSet, picture_prompts
from bitsfusion.metrics.geneval.files import read_results
from bitsfusion.pipelines.load import EMBEDDED

from ..command import run

DRAWN = ("--sampler", "ddim", "--steps", "2", "--guidance", "4")
GENEVAL = ("--metrics", "geneval", "--detector", "world")
CLIP = ("--clip", str(SCORER_FOLDER))


def evaluate(out: Path, *arguments: object) -> int:
    return run("evaluate", *arguments, "--out", out, "--quiet")


def scores(out: Path) -> dict:
    return json.loads((out / "scores.json").read_text())


def pictures(folder: Path, texts: list[str], size: int = 8, seeds: Sequence[int] = ()) -> Path:
    folder.mkdir()
    lines = []
    for index, text in enumerate(texts):
        Image.new("RGB", (size, size), (40 * index, 0, 0)).save(folder / f"{index}.png")
        seed = {"seed": seeds[index]} if seeds else {}
        lines.append(json.dumps({"file_name": f"{index}.png", "text": text, **seed}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt.metadata()) + "\n" for prompt in QUICK.prompt_set("test", 1)))
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, prompts) -> Path:
    """What `evaluate` leaves of the embedded model: two images a prompt."""
    out = tmp_path_factory.mktemp("drawn")
    common = ("--prompts", prompts, "--images-per-prompt", 2, *DRAWN, *CLIP)
    assert evaluate(out, EMBEDDED, *common, "--metrics", "geneval,clip", "--detector", "world") == 0
    return out


def test_anybodys_tree_by_the_official_rules(drawn, tmp_path):
    tree = drawn / "geneval" / "model" / "guidance-4"
    assert evaluate(tmp_path, tree, *GENEVAL) == 0
    (ours,), (theirs, _) = scores(tmp_path)["results"], scores(drawn)["results"]
    assert ours["model"] == theirs["model"]
    lines = [read_results(folder / "results.jsonl") for folder in (tmp_path / "geneval" / "model" / "given", tree)]
    assert [(line.prompt, line.correct, line.reason, line.details) for line in lines[0]] == [
        (line.prompt, line.correct, line.reason, line.details) for line in lines[1]
    ]
    said = ours["of"]
    assert (said["sampler"], said["steps"], said["seeds"], ours["guidance"]) == (None,) * 4
    assert (said["images"], said["images_per_prompt"]) == (12, 2)
    assert set(said["model"]["pictures"].values()) == {None}


def test_pictures_against_the_model_that_drew_them(drawn, prompts, tmp_path):
    images = drawn / "model" / "guidance-4"
    common = ("--prompts", prompts, "--images-per-prompt", 2, "--against", EMBEDDED, *DRAWN)
    assert evaluate(tmp_path, images, *common, "--metrics", "mse,clip") == 0
    error, clip = scores(tmp_path)["results"]
    assert error["to_original"]["mean"] == 0 and clip["difference"]["mean"] == 0
    assert clip["model"]["mean"] == scores(drawn)["results"][1]["model"]["mean"]
    assert clip["guidance"] == 4 and clip["of"]["steps"] == 2 and "pictures" not in clip["of"]["against"]
    # The folder's own prompts and seeds are those that it was drawn with.
    alone = (images, "--against", EMBEDDED, *DRAWN, "--metrics", "mse")
    assert evaluate(tmp_path / "alone", *alone) == 0
    said = scores(tmp_path / "alone")["results"][0]
    assert said["to_original"]["mean"] == 0 and said["of"]["images_per_prompt"] == 2
    assert said["of"]["seeds"] == {"first": 1024, "count": 12} == said["of"]["model"]["pictures"]["seeds"]
    assert said["of"]["model"]["pictures"]["guidance"] == 4
    # Prompts in another order: each finds its own pictures.
    (tmp_path / "turned.jsonl").write_text("\n".join(prompts.read_text().splitlines()[::-1]))
    turned = ("--prompts", tmp_path / "turned.jsonl", "--images-per-prompt", 2, *CLIP, "--metrics", "clip")
    assert evaluate(tmp_path / "turned", images, *turned) == 0
    assert scores(tmp_path / "turned")["results"][0]["model"]["mean"] == pytest.approx(clip["model"]["mean"])


def test_a_tree_of_links(tmp_path):
    """Its pictures lie together in one folder of it, as those of another layout do."""
    (tmp_path / "tree" / "all").mkdir(parents=True)
    for index, shape in enumerate(("circle", "square")):
        Image.new("RGB", (64, 64), (0, 90 * index, 0)).save(tmp_path / "tree" / "all" / f"{index}.png")
        samples = tmp_path / "tree" / str(index) / "samples"
        samples.mkdir(parents=True)
        line = {"tag": "single_object", "include": [{"class": shape, "count": 1}], "prompt": f"a {shape}"}
        (samples.parent / "metadata.jsonl").write_text(json.dumps(line))
        (samples / "0.png").symlink_to(f"../../all/{index}.png")
    assert evaluate(tmp_path / "out", tmp_path / "tree", *GENEVAL) == 0
    written = tmp_path / "out" / "geneval" / "model" / "given"
    assert [line.prompt for line in read_results(written / "results.jsonl")] == ["a circle", "a square"]
    second = written / "00001" / "samples" / "0000.png"
    assert second.read_bytes() == (tmp_path / "tree" / "all" / "1.png").read_bytes()


def test_results_never_replace_the_pictures(drawn, tmp_path, capsys):
    assert evaluate(tmp_path, drawn / "geneval" / "model" / "guidance-4", *GENEVAL) == 0
    tree = tmp_path / "geneval" / "model" / "given"
    before = {path: path.read_bytes() for path in tree.rglob("*.png")}
    assert evaluate(tmp_path, tree, *GENEVAL) == 2
    assert "wanted another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tree.rglob("*.png")} == before and len(before) == 12


def test_prompts_and_seeds_of_a_folder(tmp_path):
    """Whatever the order that they were drawn in, the pictures of a prompt are one prompt's, each with its seed."""
    folder = pictures(tmp_path / "a", ["one", "two", "one", "two"], seeds=[7, 3, 9, 11])
    assert picture_prompts(folder, 1024) == (PromptSet(("one", "one", "two", "two"), (7, 9, 3, 11)), 2)
    prompts, _ = picture_prompts(folder, 1024)
    images = matching_pictures(folder, prompts)
    assert [path.name for path in images.paths] == ["0.png", "2.png", "1.png", "3.png"]
    assert (
        images.metadata is not None and images.metadata["seeds"] == [7, 9, 3, 11] and images.metadata["sampler"] is None
    )
    uneven = pictures(tmp_path / "b", ["one", "two", "one"])
    assert picture_prompts(uneven, 1024) == (PromptSet(("one", "two", "one"), (1024, 1025, 1026)), 1)


def test_what_is_measured_is_kept_until_a_picture_changes(tmp_path):
    a, b = (pictures(tmp_path / name, ["one", "two", "one"]) for name in "ab")
    arguments = (a, "--against", b, "--metrics", "mse")
    assert evaluate(tmp_path / "out", *arguments) == 0
    assert scores(tmp_path / "out")["results"][0]["to_original"]["mean"] == 0
    values = tmp_path / "out" / "values" / "mse-model-given.json"
    before = values.stat().st_mtime_ns
    assert evaluate(tmp_path / "out", *arguments) == 0
    assert values.stat().st_mtime_ns == before
    Image.new("RGB", (8, 8), (255, 255, 255)).save(a / "2.png")
    assert evaluate(tmp_path / "out", *arguments) == 0
    assert json.loads(values.read_text())["values"][:2] == [0, 0]
    assert scores(tmp_path / "out")["results"][0]["to_original"]["mean"] > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["A", "--metrics", "mse", "--against", "OTHER"], "got 0 pictures of 'one', wanted 2"),
        (["A", "--metrics", "mse", "--against", "FEWER"], "got 1 pictures of 'one', wanted 2"),
        (["A", "--metrics", "mse", "--against", "LARGER"], "wanted two equal"),
        (["MIXED", "--metrics", "mse", "--against", "A"], "got 4x4 pixels, wanted 8x8 as in"),
        (["A", "--metrics", "mse", "--against", "A", "--guidance", "3,4"], "got 2 values beside a folder of pictures"),
        (["A", "--metrics", "geneval"], "wanted GenEval's own"),
        (["A", "--metrics", "mse", "--against", "LINKED"], "lies outside"),
        (["BARE", "--metrics", "mse", "--against", "A"], "bare: got neither model_index.json nor metadata.jsonl"),
        (["A", "--images-per-prompt", "3"], "got 1 pictures of each prompt, wanted 3"),
        (["TREE", *GENEVAL], "got 1 pictures of 'circle 1', wanted 2 as of other prompts"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, capsys):
    folders = {
        "A": pictures(tmp_path / "a", ["one", "two", "one"]),
        "OTHER": pictures(tmp_path / "other", ["three"]),
        "FEWER": pictures(tmp_path / "fewer", ["one", "two"]),
        "LARGER": pictures(tmp_path / "larger", ["one", "two", "one"], size=16),
        "MIXED": pictures(tmp_path / "mixed", ["one", "two", "one"]),
        "LINKED": pictures(tmp_path / "linked", ["one", "two", "one"]),
        "BARE": tmp_path / "bare",
        "TREE": tmp_path / "tree",
    }
    (tmp_path / "bare").mkdir()
    (tmp_path / "linked" / "1.png").unlink()
    (tmp_path / "linked" / "1.png").symlink_to(tmp_path / "a" / "1.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "mixed" / "1.png")
    for index, count in enumerate((2, 1)):
        samples = tmp_path / "tree" / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        line = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": f"circle {index}"}
        (samples.parent / "metadata.jsonl").write_text(json.dumps(line))
        for sample in range(count):
            Image.new("RGB", (64, 64)).save(samples / f"{sample:04d}.png")
    assert evaluate(tmp_path / "out", *(folders.get(argument, argument) for argument in arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
