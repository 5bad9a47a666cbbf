import errno
import os

import pytest

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.files import atomic_folder, atomic_path, read_json, sha256_folder, write_json


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
