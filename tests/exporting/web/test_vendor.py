"""Third-party scripts: only those of the hashes that were tested are taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.exporting.web import vendor
from bitsfusion.exporting.web.vendor import PACKAGES, write_vendor


def test_names_are_npms() -> None:
    assert [package.archive for package in PACKAGES] == [
        "onnxruntime-web-1.30.0.tgz",
        "fzstd-0.1.1.tgz",
        "huggingface-tokenizers-0.2.0.tgz",
    ]


def test_files_and_licences(archives: Path, tmp_path: Path) -> None:
    write_vendor(tmp_path, archives)
    listed = json.loads((tmp_path / "packages.json").read_text())
    assert {entry["licence"] for entry in listed} == {"MIT", "Apache-2.0"}
    named = {name for entry in listed for name in entry["files"]}
    assert {path.name for path in tmp_path.iterdir()} == {*named, "packages.json"}
    assert (tmp_path / "fzstd.LICENSE").read_text().startswith("MIT License")


def test_another_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / PACKAGES[0].archive).write_bytes(b"something else")
    with pytest.raises(BitsFusionError, match=r"got sha512-.*, wanted sha512-q0y"):
        write_vendor(tmp_path, tmp_path)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no onnxruntime-web-1\.30\.0\.tgz .* npm pack onnxruntime-web@1\.30\.0"):
        write_vendor(tmp_path, tmp_path)


def test_without_npm_the_option_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="--vendor DIR"):
        write_vendor(tmp_path)


def test_npms_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(vendor.shutil, "which", lambda name: str(program))
    with pytest.raises(BitsFusionError, match=r"npm pack onnxruntime-web@1\.30\.0: npm error code E404"):
        write_vendor(tmp_path)
