import errno
import multiprocessing
import os
import subprocess
import sys

import pytest

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.evaluation.drawing import generate_to_folder
from bitsfusion.io.atomic import atomic_folder, atomic_path, remove_leftovers
from bitsfusion.io.hashes import sha256_folder
from bitsfusion.io.locks import wait_for_lock
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.io.work_folder import folder_lock


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
        monkeypatch.setattr("bitsfusion.io.atomic._exchange", lambda one, other: False)
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


def test_only_the_leftovers_of_one_file_are_removed(tmp_path):
    for name in (".a.json.abcd1234.partial", ".b.json.abcd1234.partial", "a.json"):
        (tmp_path / name).write_text("old")
    remove_leftovers(tmp_path / "a.json")
    assert sorted(os.listdir(tmp_path)) == [".b.json.abcd1234.partial", "a.json"]


def test_generate_clears_what_a_killed_one_left_of_its_own_pictures(tmp_path):
    for name in (".0000.png.abcd1234.partial", ".metadata.jsonl.abcd1234.partial", ".mine.png.abcd1234.partial"):
        (tmp_path / name).write_text("half")
    generate_to_folder("embedded", ["a red circle"], tmp_path, sampler="ddim", steps=1, guidance=1.0, seed=0)
    assert sorted(os.listdir(tmp_path)) == [".mine.png.abcd1234.partial", "0000.png", "metadata.jsonl"]


def test_a_work_folder_is_cleared_of_what_killed_processes_left(tmp_path):
    (tmp_path / "stage").mkdir()
    for name in ("stage/.log.jsonl.abcd1234.partial", ".model.abcd1234.partial.lock", "stage/mine.partial"):
        (tmp_path / name).write_text("half")
    leave(tmp_path, ".model.abcd1234.partial")
    with folder_lock(tmp_path, tmp_path / "steps" / "lock"):
        assert sorted(file.name for file in tmp_path.rglob("*")) == ["lock", "mine.partial", "stage", "steps"]
        with pytest.raises(InputError, match="another process is working"):
            folder_lock(tmp_path, tmp_path / "steps" / "lock")
    assert not (tmp_path / "steps" / "lock").exists()


def wait_and_count(path, counter):
    for _ in range(40):
        with wait_for_lock(path):
            number = int(counter.read_text())
            counter.write_text(str(number + 1))


def test_a_lock_lets_one_process_in_at_a_time(tmp_path):
    """Its file comes and goes all the time, which must not let two in."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=wait_and_count, args=(tmp_path / "lock", counter)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert counter.read_text() == "120"
    assert os.listdir(tmp_path) == ["counter"]


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
import bitsfusion
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.io.texts import read_json
from bitsfusion.io.work_folder import folder_lock
from bitsfusion.io.locks import try_lock
folder = Path(sys.argv[1])
for content in ("one", "two"):
    with atomic_folder(folder / "model") as temporary:
        (temporary / "weights").write_text(content)
with folder_lock(folder / "run", folder / "run" / "lock"):
    assert try_lock(folder / "run" / "lock") is None
print("locked")
"""


def test_a_system_without_fcntl(tmp_path):
    """Windows has none: locks still hold."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("locked"), done.stderr
    assert (tmp_path / "model" / "weights").read_text() == "two"
    assert sorted(os.listdir(tmp_path)) == ["model", "run"] and os.listdir(tmp_path / "run") == []
