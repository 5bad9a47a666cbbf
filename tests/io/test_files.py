import errno
import os

import pytest

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.files import atomic_folder, atomic_path, read_json, sha256_folder, write_json


def fill(path, error):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def fill_folder(path, error):
    with atomic_folder(path) as temporary:
        (temporary / "weights").write_text("new")
        raise error


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError):
        fill(path, RuntimeError())
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_is_one_line_and_leaves_the_old_folder(tmp_path):
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "weights").write_text("old")
    before = sha256_folder(path)
    with pytest.raises(BitsFusionError, match=r"model: could not be written \(No space left on device\); nothing was"):
        fill_folder(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert sha256_folder(path) == before
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "model"
    for name in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(path) == ["two"]
    assert os.listdir(tmp_path) == ["model"]


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [None, "{", b"\xff\xfe"])
def test_json_that_is_missing_or_broken(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match="wanted a JSON file"):
        read_json(path)


def leave(folder, name, content="old"):
    (folder / name).mkdir()
    (folder / name / "weights").write_text(content)


def write(path, content="new"):
    with atomic_folder(path) as temporary:
        (temporary / "weights").write_text(content)


def test_leftovers_of_dead_writers_are_swept_and_nothing_else(tmp_path):
    mine = [".model.abcd1234.partial", ".model.abcd_234.old"]
    others = [".model.b.abcd1234.partial", ".model.abcd1234.partial.bak", ".other.abcd1234.partial", "model.txt"]
    for name in (*mine, *others, "model"):
        leave(tmp_path, name)
    write(tmp_path / "model")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "model"])
    assert (tmp_path / "model" / "weights").read_text() == "new"


def test_a_live_writer_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "model") as first:
        (first / "weights").write_text("first")
        write(tmp_path / "model", "second")
        assert (first / "weights").read_text() == "first"
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "first"


def test_an_old_folder_left_without_a_new_one_is_brought_back(tmp_path):
    leave(tmp_path, ".model.abcd1234.old", "precious")
    with pytest.raises(RuntimeError):
        fill_folder(tmp_path / "model", RuntimeError())
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "precious"


@pytest.mark.parametrize("exchange", [True, False])
def test_names_change_places(tmp_path, monkeypatch, exchange):
    """Also on a file system that cannot exchange two names in one step."""
    if not exchange:
        monkeypatch.setattr("bitsfusion.io.files._exchange", lambda one, other: False)
    write(tmp_path / "model", "old")
    inode = (tmp_path / "model").stat().st_ino
    write(tmp_path / "model", "new")
    assert (tmp_path / "model").stat().st_ino != inode
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_stays_a_link(tmp_path):
    write(tmp_path / "disk" / "model", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    write(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "model" / "weights").read_text() == "new"
    assert os.listdir(tmp_path / "disk") == ["model"]
    (tmp_path / "a.json").symlink_to(tmp_path / "disk" / "b.json")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").is_symlink() and read_json(tmp_path / "disk" / "b.json") == 1


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(BitsFusionError, match="Not a directory"):
        write(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"
    assert os.listdir(tmp_path) == ["model"]
