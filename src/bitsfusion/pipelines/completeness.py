"""Checks that a component is complete: a broken download leaves files out, cuts them short, or leaves pointers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bitsfusion.architectures.base import Denoiser
from bitsfusion.errors import InputError, reason
from bitsfusion.io.texts import POINTER, is_pointer, read_json
from bitsfusion.pipelines.folder import Component, PipelineFolder
from bitsfusion.pipelines.weight_files import WeightFiles

_NO_MODEL = {
    "Scheduler": ("scheduler_config.json",),
    "Tokenizer": ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"),
    "TokenizerFast": ("tokenizer.json",),
    "Processor": ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    "ProcessorFast": ("preprocessor_config.json",),
    "ProcessorPil": ("preprocessor_config.json",),
    "Extractor": ("preprocessor_config.json",),
}
"""End of a class name -> files of which at least one must exist; all other classes are models."""


def check_complete(folder: PipelineFolder, check: Callable[[Component], None] | None = None) -> None:
    """Refuses a pipeline that cannot be loaded from its own files.

    Args:
        folder: the pipeline.
        check: of every component but the denoiser; None for `check_component`.

    Raises:
        InputError: names the component and the file: missing weights or config, a git-lfs pointer, a download that was
            not finished, a link that leads nowhere, a weight file that is cut, a shard that is not there.
    """
    for component in folder.components:
        try:
            denoiser = isinstance(component.architecture, Denoiser)
            (check_component if denoiser or check is None else check)(component)
        except InputError as error:
            rest = f", or leave it out with --without {component.name}" if component.name in folder.optional else ""
            raise InputError(f"{component.name}: {error}{rest}" if component.name else str(error)) from None


def check_component(component: Component) -> None:
    """`check_complete` of one component, without its name."""
    for path in sorted(component.folder.iterdir()):
        check_file(path)
    wanted = wanted_files(component)
    names = {file.name for file in component.files}
    if not names & set(wanted):
        raise InputError(
            f"{component.folder}: got no {' or '.join(wanted[:2])}, wanted a whole {component.class_name}: "
            "download it again"
        )
    if is_model(component):
        if component.weights is None:
            raise InputError(
                f"{component.folder}: got no weights, wanted the safetensors files of a {component.class_name}: "
                "download them again"
            )
        for file in component.weights.files:
            check_safetensors(file)
        if component.weights.index is not None:
            shard_of(component.weights)


def is_model(component: Component) -> bool:
    """Whether a component has weights, by the name of its class."""
    return wanted_files(component) == ("config.json",)


def wanted_files(component: Component) -> tuple[str, ...]:
    """Files of which a component has at least one."""
    return next(
        (names for ending, names in _NO_MODEL.items() if component.class_name.endswith(ending)), ("config.json",)
    )


def check_file(path: Path) -> None:
    """Refuses what a download that was not finished leaves.

    Raises:
        InputError: a link that leads nowhere, part of a file, or a git-lfs pointer.
    """
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: got a link that leads nowhere, wanted the file: download it again")
    if path.name.endswith((".incomplete", ".part", ".crdownload", ".aria2")):
        raise InputError(f"{path}: got part of a download, wanted it finished: download it again")
    if path.is_file() and path.stat().st_size < 1024:
        with open(path, "rb") as file:
            if is_pointer(file.read()):
                raise InputError(f"{path}: {POINTER}")


def check_safetensors(path: Path) -> None:
    """Whether a safetensors file has a header and all the bytes that it tells of.

    Raises:
        InputError: it is cut, or no such file.
    """
    try:
        with _opened(path):
            pass
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: got {reason(error)}, wanted a whole safetensors file") from None


def _opened(path: Path) -> safe_open:
    with open(path, "rb"):  # of a file that may not be read, safetensors says that there is none
        return safe_open(path, framework="np")


def shard_of(weights: WeightFiles) -> dict[str, str]:
    """Tensor -> the shard that holds it, by the shards' own headers; loaders read all shards, whatever the index says.

    Raises:
        InputError: the index lists a tensor that no shard holds, or a shard holds one that it does not list.
    """
    assert weights.index is not None
    held = {tensor: file.name for file in weights.files for tensor in read_shapes(file)}
    for tensor in sorted(held.keys() ^ read_json(weights.index)["weight_map"].keys()):
        where = "in a shard and not in the index" if tensor in held else "in the index and in no shard"
        raise InputError(f"{weights.index}: got {tensor} {where}, wanted both to agree: download them again")
    return held


def read_shapes(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and dtype (as safetensors writes it), from the header alone.

    Raises:
        InputError: no safetensors file, or a cut one.
    """
    try:
        with _opened(file) as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: got {reason(error)}, wanted a whole safetensors file") from None
