"""Is a packed folder whole? Every file of it, from the files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitsfusion.artifact.container import StoredTensor
from bitsfusion.artifact.dense_files import check_dense
from bitsfusion.artifact.hashes import read_hashes
from bitsfusion.artifact.limits import check_memory
from bitsfusion.artifact.payload import check_others
from bitsfusion.artifact.reader import PackedFolder, Tensors, component_named, open_components
from bitsfusion.artifact.schema import PACKED_SUFFIX, PackedConfig
from bitsfusion.errors import ArtifactError, BitsFusionError, InputError
from bitsfusion.io.hashes import sha256_file
from bitsfusion.pipelines.folder import INDEX, read_folder
from bitsfusion.pipelines.resolve import HASHES_FILE

PICKLES = (".bin", ".pt", ".pth", ".pt2", ".ckpt", ".pkl", ".pickle", ".p", ".joblib", ".dill", ".npy", ".npz", ".tar")
CODE = (".py", ".pyc", ".pyd", ".so", ".dylib", ".dll", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".js", ".ipynb")
_ABOUT = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "card", ".gitattributes")
"""Files and folders that describe a pipeline; no loader reads them."""


@dataclass(frozen=True)
class Verification:
    """What was found.

    Fields:
        path: the folder.
        faults: one line each, packed components first; empty where all is well.
        packed: the packed components that were checked; a model alone is "".
        dense: the other components that were checked.
        files: how many files were compared with their hashes in SHA256SUMS; None where there is no such file.
        unchecked: what could not be checked, one line each.
    """

    path: str
    faults: tuple[str, ...]
    packed: tuple[str, ...]
    dense: tuple[str, ...]
    files: int | None
    unchecked: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with `whole`: no fault was found."""
        return {"whole": not self.faults, **asdict(self)}


def verify_folder(path: Path | str) -> None:
    """Raises an error unless `verify` finds no fault.

    Raises:
        InputError: no packed folder.
        ArtifactError: the first thing that is wrong, with the component's (but the denoiser's) and the layer's name.
    """
    for fault in verify(path).faults:
        raise ArtifactError(fault)


def verify(path: Path | str) -> Verification:
    """Checks a packed model or pipeline folder, all of it.

    Of a packed component, in this order: the config against its schema, the config against the model's own shapes, the
    names in the files, every other tensor's type and shape, each layer's size, scales, zstd frame, range and hash, the
    other tensors' values and hash. A few layers are in memory at a time, and never more than the files are worth. Of
    the other components: whether all files are there, can be read and fit each other, and the shapes that the class
    asks for where it is one that can be packed. Of all files: their hashes, where the folder has them, and their kinds.

    A packed component whose config is broken or missing is a fault, and leaves only the files' hashes and kinds.

    Raises:
        InputError: no packed folder.
    """
    path = Path(path)
    faults: list[str] = []
    packed: Mapping[str, PackedFolder] = {}
    try:
        packed = open_components(path)
    except ArtifactError as error:
        faults.append(_line(error))
    for name, folder in packed.items():
        with _collected(faults), component_named(name):
            _verify(folder)
    dense: list[str] = []
    if packed and (path / INDEX).is_file():
        dense = _dense(path, packed, faults)
    files, unchecked = _files(path, faults)
    if files is None and dense:
        unchecked.insert(
            0, f"values of dense components ({', '.join(dense)}), and what files there are: there is no {HASHES_FILE}"
        )
    return Verification(str(path), tuple(faults), tuple(packed), tuple(dense), files, tuple(unchecked))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _collected:
    """Errors within it become lines of a list."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, BitsFusionError):
            self.faults.append(_line(error))
        elif isinstance(error, OSError):
            self.faults.append(f"{error.filename}: got {error.strerror}, wanted a file that can be read")
        return isinstance(error, (BitsFusionError, OSError))


def _dense(path: Path, packed: Mapping[str, PackedFolder], faults: list[str]) -> list[str]:
    """The components that are not packed, checked."""
    with _collected(faults):
        folder = read_folder(path)
        names = []
        for component in folder.components:
            if component.name not in packed:
                names.append(component.name)
                with _collected(faults):
                    try:
                        check_dense(component)
                    except InputError as error:
                        raise ArtifactError(f"{component.name}: {error}") from None
        listed = {component.name for component in folder.components}
        for child in sorted(path.iterdir()):
            if child.is_dir() and child.name not in listed and child.name not in _ABOUT and child.name[0] != ".":
                faults.append(f"{child}: got a folder that {INDEX} does not list, wanted its components alone")
        return names
    return []


def _files(path: Path, faults: list[str]) -> tuple[int | None, list[str]]:
    """Every file's hash and kind: how many have one, and what has none."""
    hashes: Mapping[str, str] | None = None
    with _collected(faults):
        hashes = read_hashes(path)
    pipeline, unchecked, compared = (path / INDEX).is_file(), [], 0
    there = {file.relative_to(path).as_posix(): file for file in sorted(_walk(path, faults))}
    for name in sorted((hashes or {}).keys() - there.keys()):
        faults.append(f"{path / name}: got no such file, wanted it as in {HASHES_FILE}")
    for name, file in there.items():
        with _collected(faults):
            kind = file.suffix.lower()
            if kind in PICKLES:
                raise ArtifactError(f"{file}: got a file that may be a pickle, wanted safetensors files alone")
            if kind in CODE:
                raise ArtifactError(f"{file}: got code, wanted none: no code that comes with a model is run")
            if hashes is not None and name in hashes:
                compared += 1
                _compare(file, hashes[name])
            elif name != HASHES_FILE:
                top = name.split("/")[0]
                if hashes is not None and pipeline and top not in _ABOUT and top[0] != ".":
                    raise ArtifactError(f"{file}: got a file without a hash in {HASHES_FILE}, wanted it there or away")
                if top in _ABOUT or top[0] == ".":
                    unchecked.append(f"{file}: no part of the model")
    return (None if hashes is None else compared), unchecked


def _walk(path: Path, faults: list[str]) -> Iterator[Path]:
    """Every file below a folder; links to files are followed, links to folders too, but not in circles."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        with _collected(faults):
            for child in folder.iterdir():
                if child.is_dir():
                    waiting.append(child)
                else:
                    yield child


def _compare(file: Path, wanted: str) -> None:
    if not file.is_file():
        raise ArtifactError(f"{file}: got no regular file, wanted one")
    got = sha256_file(file)
    if got != wanted:
        raise ArtifactError(f"{file}: got a file of SHA-256 {got}, wanted {wanted} as in {HASHES_FILE}")


def _verify(folder: PackedFolder) -> None:
    expected = folder.expected()
    with folder.tensors() as tensors:
        check_tensors(folder.config, expected, tensors)


def check_tensors(config: PackedConfig, expected: Mapping[str, StoredTensor], tensors: Tensors) -> None:
    """The part of `verify` that reads the weight files of a packed component.

    Args:
        expected: see `PackedFolder.expected`.

    Raises:
        ArtifactError: the first thing that is wrong.
    """
    check_stored(expected, tensors)
    for _ in tensors.buffers():
        pass
    others = {name: tensors.tensor(name) for name in expected if not name.endswith(PACKED_SUFFIX)}
    check_others(others, config.others_sha256)


def check_stored(expected: Mapping[str, StoredTensor], tensors: Tensors) -> None:
    """Names, dtypes, shapes and sizes by the files' headers alone.

    Raises:
        ArtifactError: names the layer or tensor.
    """
    for name in sorted(expected.keys() ^ tensors.stored.keys()):
        missing = f"got no tensor {name} in the file"
        surplus = f"got a tensor {name} that the model does not have"
        raise ArtifactError(f"{name.removesuffix(PACKED_SUFFIX)}: {missing if name in expected else surplus}")
    for name, stored in tensors.stored.items():
        shape = list(expected[name].shape)
        if name.endswith(PACKED_SUFFIX):
            if stored.dtype != "U8" or len(stored.shape) != 1:
                layer = name.removesuffix(PACKED_SUFFIX)
                raise ArtifactError(f"{layer}: got {stored.dtype} {list(stored.shape)}, wanted one-dimensional U8")
            continue
        dtype = expected[name].dtype
        if stored.dtype != dtype or list(stored.shape) != shape:
            raise ArtifactError(f"{name}: got {stored.dtype} {list(stored.shape)}, wanted {dtype} {shape}")
    decoded = sum(tensor.nbytes for tensor in expected.values())
    check_memory(decoded, sum(stored.nbytes for stored in tensors.stored.values()))
