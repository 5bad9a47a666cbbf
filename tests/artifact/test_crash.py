"""Packing that is killed or runs out of disk: the old folder, the new one, or none; the next run is not disturbed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitsfusion.artifact.verify import verify_folder
from bitsfusion.errors import BitsFusionError
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.io.hashes import sha256_folder

from .killed_packing import Packer

SEED = 20240


@pytest.fixture(scope="module")
def pack() -> Packer:
    return Packer()


@pytest.fixture(scope="module")
def whole(pack: Packer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The hashes of the two packed folders, each whole."""
    hashes = []
    for model in (0, 1):
        path = tmp_path_factory.mktemp("whole") / "model"
        assert pack(path, model) | {"seconds": 0} == {"killed": False, "error": None, "seconds": 0}
        verify_folder(path)
        hashes.append(sha256_folder(path))
    assert hashes[0] != hashes[1]
    return hashes


def holds(path: Path, whole: list[str]) -> int | None:
    """Which of the two models is there, if any; nothing else may be."""
    return whole.index(sha256_folder(path)) if path.exists() else None


def test_killed_at_any_file_operation(pack: Packer, whole: list[str], tmp_path: Path) -> None:
    """At every call that touches the folder in turn, with an old folder there and without."""
    seen: list[tuple[int | None, int | None]] = []
    for old in (0, None):
        target = tmp_path / str(old) / "model"
        for event in range(200):
            if old is not None and holds(target, whole) != old:
                pack(target, old)
            elif old is None:
                shutil.rmtree(target, ignore_errors=True)
            result = pack(target, 1, kill_at=event)
            seen.append((old, holds(target, whole)))
            if not result["killed"]:
                break
            assert seen[-1][1] in (old, 1)
        assert not result["killed"] and result["error"] is None and event > 8
        assert os.listdir(target.parent) == ["model"]
    # Before the change of names, after it, and nothing in between.
    assert set(seen) == {(0, 0), (0, 1), (None, None), (None, 1)}


@pytest.mark.slow
def test_killed_where_names_cannot_be_exchanged(pack: Packer, whole: list[str], tmp_path: Path) -> None:
    """Between the two renames the old folder has another name: the next writer brings it back, even one that fails."""
    target = tmp_path / "model"
    brought_back = 0
    for event in range(200):
        if holds(target, whole) != 0:
            pack(target, 0)
        result = pack(target, 1, kill_at=event, two_steps=True)
        missing = not target.exists()
        with pytest.raises(BitsFusionError), atomic_folder(target):
            raise OSError("a writer that fails")
        assert holds(target, whole) in (0, 1)
        assert os.listdir(tmp_path) == ["model"]
        brought_back += missing
        if not result["killed"]:
            break
    assert not result["killed"] and brought_back > 0


def kill_at_random(pack: Packer, whole: list[str], tmp_path: Path, trials: int) -> None:
    rng = random.Random(SEED)
    target = tmp_path / "model"
    full = min(pack(target, 0)["seconds"] for _ in range(4))
    state: int | None = 0
    killed = 0
    for _ in range(trials):
        if rng.random() < 0.2:
            shutil.rmtree(target, ignore_errors=True)
            state = None
        new = rng.randrange(2)
        result = pack(target, new, kill_after=rng.uniform(0, full))
        killed += result["killed"]
        found = holds(target, whole)
        assert found in (state, new) and (result["killed"] or found == new)
        state = found
    assert killed > trials // 4
    pack(target, 1)
    assert holds(target, whole) == 1 and os.listdir(tmp_path) == ["model"]


def test_killed_at_random_moments(pack: Packer, whole: list[str], tmp_path: Path) -> None:
    kill_at_random(pack, whole, tmp_path, 25)


@pytest.mark.slow
def test_killed_at_many_random_moments(pack: Packer, whole: list[str], tmp_path: Path) -> None:
    kill_at_random(pack, whole, tmp_path, 500)


@pytest.mark.parametrize(("limit", "pipeline"), [(0, False), (10_000, False), (100, True), (40_000, True)])
def test_no_room_for_a_file(pack: Packer, whole: list[str], tmp_path: Path, limit: int, pipeline: bool) -> None:
    """The system refuses to write on, in the config, in a component's weights or in the packed ones."""
    target = tmp_path / "model"
    pack(target, 0, pipeline=pipeline)
    before = sha256_folder(target)
    result = pack(target, 1, pipeline=pipeline, file_bytes=limit)
    assert not result["killed"] and "\n" not in result["error"]
    assert result["error"].startswith(f"{target}: could not be written (")
    assert result["error"].endswith("nothing was changed")
    assert sha256_folder(target) == before and os.listdir(tmp_path) == ["model"]
    shutil.rmtree(target)
    assert pack(target, 1, pipeline=pipeline, file_bytes=limit)["error"] is not None
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(pack: Packer, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one packed folder and a half."""
    pack(tmp_path / "model", 0)
    size = sum(-(-file.stat().st_size // 4096) * 4096 for file in (tmp_path / "model").iterdir())
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system needs the right to mount one")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(pack: Packer, whole: list[str], small_disk: Path) -> None:
    target = small_disk / "model"
    assert pack(target, 0)["error"] is None
    error = pack(target, 1)["error"]
    assert error == f"{target}: could not be written (No space left on device); nothing was changed"
    assert holds(target, whole) == 0 and os.listdir(small_disk) == ["model"]
