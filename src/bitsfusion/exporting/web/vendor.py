"""Third-party scripts of the page: npm packages of exact versions, checked against their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bitsfusion.errors import BitsFusionError, InputError


@dataclass(frozen=True)
class NpmPackage:
    """An npm package.

    Fields:
        name, version: as npm has them.
        sha512: of its archive, in base64, as npm's lock files have it.
        files: path in the archive -> name beside the page.
    """

    name: str
    version: str
    sha512: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def archive(self) -> str:
        """The name that `npm pack` gives its archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    NpmPackage(
        "onnxruntime-web",
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        {
            f"package/dist/{name}": name
            for name in (
                "ort.wasm.min.mjs",
                "ort-wasm-simd-threaded.mjs",
                "ort-wasm-simd-threaded.wasm",
                "ort.webgpu.min.mjs",
                "ort-wasm-simd-threaded.asyncify.mjs",
                "ort-wasm-simd-threaded.asyncify.wasm",
            )
        },
    ),
    NpmPackage(
        "fzstd",
        "0.1.1",
        "dkuVSOKKwh3eas5VkJy1AW1vFpet8TA/fGmVA5krThl8YcOVE/8ZIoEA1+U1vEn5ckxxhLirSdY837azmbaNHA==",
        {"package/esm/index.mjs": "fzstd.mjs", "package/LICENSE": "fzstd.LICENSE"},
    ),
    NpmPackage(
        "@huggingface/tokenizers",
        "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        {"package/dist/tokenizers.min.mjs": "tokenizers.mjs", "package/LICENSE": "tokenizers.LICENSE"},
    ),
)
"""What the page runs: neural networks, zstd, tokenizers."""
LIST = "packages.json"


def write_vendor(out: Path, archives: Path | None = None) -> None:
    """Puts the scripts of `PACKAGES` into folder `out`, and a list of what they are and under which licence.

    Args:
        out: an existing folder.
        archives: where `npm pack` has put the archives; None to call npm, which takes them from its cache or its
            registry.

    Raises:
        InputError: an archive is missing, or there is no npm.
        BitsFusionError: npm failed, or an archive is not the one that was tested (its hash).
    """
    listed = []
    with _archives(archives) as folder:
        for package in PACKAGES:
            path = folder / package.archive
            if not path.is_file():
                raise InputError(f"vendor: got no {package.archive} in {folder}, wanted it: npm pack {package}")
            found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
            if found != package.sha512:
                raise BitsFusionError(f"{path}: got sha512-{found}, wanted sha512-{package.sha512}, that of {package}")
            with tarfile.open(path) as archive:
                for member, name in package.files.items():
                    source = archive.extractfile(member)
                    assert source is not None
                    with source, open(out / name, "wb") as target:
                        shutil.copyfileobj(source, target)
                about = archive.extractfile("package/package.json")
                assert about is not None
                licence = json.loads(about.read())["license"]
            integrity = f"sha512-{package.sha512}"
            files = list(package.files.values())
            listed.append({"package": str(package), "licence": licence, "integrity": integrity, "files": files})
    (out / LIST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _archives(given: Path | None) -> Iterator[Path]:
    """The folder of the archives: the one given, or a temporary one that npm fills."""
    if given is not None:
        yield given
        return
    npm = shutil.which("npm")
    if npm is None:
        names = " ".join(map(str, PACKAGES))
        raise InputError(f"npm: got no such program, wanted it, or --vendor DIR with what `npm pack {names}` gives")
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            command = [npm, "pack", str(package), "--pack-destination", folder, "--prefer-offline", "--ignore-scripts"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
                raise BitsFusionError(f"npm pack {package}: {lines[0]}; --vendor DIR takes archives from a folder")
        yield Path(folder)


if __name__ == "__main__":
    sys.stdout.write(" ".join(map(str, PACKAGES)) + "\n")
