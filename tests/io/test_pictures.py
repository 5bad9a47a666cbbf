from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bitsfusion.errors import InputError
from bitsfusion.io.pictures import holds_pictures, is_tree, read_pictures


def tree(folder: Path, names: dict[str, list[str]]) -> Path:
    """GenEval's, with the folders and samples of `names`."""
    for name, samples in names.items():
        (folder / name / "samples").mkdir(parents=True)
        (folder / name / "metadata.jsonl").write_text(json.dumps({"tag": "x", "include": [], "prompt": f" {name} "}))
        for sample in samples:
            Image.new("RGB", (2, 2)).save(folder / name / "samples" / sample)
    return folder


def test_a_trees_order_is_that_of_its_numbers(tmp_path):
    folder = tree(tmp_path, {"10": ["0.png"], "9": ["10.png", "2.png", "grid.png"], "notes": ["0.png"], "11": []})
    assert is_tree(folder) and holds_pictures(folder)
    found = [(picture.prompt, picture.path.name) for picture in read_pictures(folder)]
    assert found == [("9", "2.png"), ("9", "10.png"), ("10", "0.png")]


def test_a_pipelines_folder_is_no_pictures(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("")
    assert holds_pictures(tmp_path) and not is_tree(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    assert not holds_pictures(tmp_path)
    assert not holds_pictures(tmp_path / "none") and not holds_pictures("somebody/model")


def test_a_folder_of_a_tree_without_metadata_is_named(tmp_path):
    folder = tree(tmp_path, {"0": ["0.png"], "1": ["0.png"]})
    (folder / "1" / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"1/metadata\.jsonl: wanted lines of JSON"):
        list(read_pictures(folder))
