"""A new packed folder takes the place of a packed one and of nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bitsfusion.artifact.target import check_target
from bitsfusion.errors import InputError

GOLDEN = Path(__file__).parent / "golden" / "v1" / "cached"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "model"))


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "pipeline"))


def test_new_empty_and_packed_folders(model: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "empty", model, whole):
        check_target(path)


@pytest.mark.parametrize("break_it", ["config is cut", "config is gone", "version", "weights are gone"])
def test_broken_packed_folders_may_be_replaced(model: Path, whole: Path, break_it: str) -> None:
    for path in (model, whole / "unet"):
        text = (path / CONFIG).read_text()
        if break_it == "config is cut":
            (path / CONFIG).write_text(text[:-3])
        elif break_it == "config is gone":
            (path / CONFIG).unlink()
        elif break_it == "version":
            (path / CONFIG).write_text(text.replace('"format_version": 1', '"format_version": 7'))
        else:
            (path / WEIGHTS).unlink()
    check_target(model)
    check_target(whole)


@pytest.mark.parametrize("name", ["README.md", ".git", "notes.txt", "images"])
def test_what_lies_beside_a_packed_model_is_not_lost(model: Path, whole: Path, name: str) -> None:
    for path in (model, whole):
        (path / name).mkdir()
        with pytest.raises(InputError, match=f"got a folder with other files .{name}. beside"):
            check_target(path)


def test_a_config_that_is_no_json_is_someone_elses(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{ // a comment\n}")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="got a folder with other files, wanted"):
        check_target(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(InputError, match="got a folder with other files, wanted"):
        check_target(tmp_path)
    with pytest.raises(InputError, match="got a file, wanted a folder"):
        check_target(tmp_path / "thesis.txt")
