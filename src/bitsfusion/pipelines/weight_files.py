"""Which files of a component's folder hold its weights: the ones that `from_pretrained` would choose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json

_WEIGHTS = re.compile(
    r"(?P<stem>model|pytorch_model|diffusion_pytorch_model)(\.(?P<variant>[A-Za-z0-9_-]+?))?"
    r"(?P<shard>-\d{5}-of-\d{5})?\.safetensors"
)
_INDEX = re.compile(
    r"(?P<stem>model|pytorch_model|diffusion_pytorch_model)"
    r"(\.(?P<early>[A-Za-z0-9_-]+))?\.safetensors\.index(\.(?P<late>[A-Za-z0-9_-]+))?\.json"
)
_OTHER_FORMATS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".xml", ".gguf", ".pb")
_PREFERRED = (None, "fp16", "bf16")
_NOT_AVERAGED = "non_ema"


@dataclass(frozen=True)
class WeightFiles:
    """The weights of one component.

    Fields:
        variant: what stands in the files' names, such as fp16; None for the plain ones.
        files: one safetensors file, or the shards of an index; in order of name.
        index: the file that names the shards, if there is one.
    """

    variant: str | None
    files: tuple[Path, ...]
    index: Path | None

    def plain_name(self, path: Path) -> str:
        """The name that the file has without its variant."""
        return path.name if self.variant is None else path.name.replace(f".{self.variant}", "", 1)


@dataclass(frozen=True)
class WeightChoice:
    """One file to begin with: all of a component's weights, or (`index`) the list of the shards that hold them."""

    path: Path
    variant: str | None
    index: bool


def weight_choices(folder: Path) -> list[WeightChoice]:
    """Every way in which a folder offers its weights as safetensors: indexes first, then single files, by name."""
    indexes, singles = [], []
    for path in sorted(folder.iterdir()):
        if found := _INDEX.fullmatch(path.name):
            indexes.append(WeightChoice(path, found["early"] or found["late"], True))
        elif (found := _WEIGHTS.fullmatch(path.name)) and found["shard"] is None:
            singles.append(WeightChoice(path, found["variant"], False))
    return [*indexes, *singles]


def is_weight_file(name: str) -> bool:
    """Whether a component's safetensors weights, a shard of them or the index may have this name."""
    return _WEIGHTS.fullmatch(name) is not None or _INDEX.fullmatch(name) is not None


def weight_files(folder: Path) -> WeightFiles | None:
    """The weights in a component's folder; None if it has none (a tokenizer, a scheduler).

    Plain names come before the variants fp16 and bf16. Another variant is chosen where it is the only one, but for
    non_ema. An index comes before a single file.

    Raises:
        InputError: weights in other formats or variants only, an index that is broken, or a shard that is missing.
    """
    choice = preferred(folder)
    if choice is not None:
        files = _shards(choice.path) if choice.index else (choice.path,)
        return WeightFiles(choice.variant, files, choice.path if choice.index else None)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    others = [name for name in names if is_weights(name)]
    if others:
        raise InputError(
            f"{folder}: got weights only as {', '.join(others[:3])}, wanted safetensors files, plain or fp16: "
            "save the pipeline with safe_serialization=True"
        )
    return None


def preferred(folder: Path) -> WeightChoice | None:
    """The first of a folder's `weight_choices` in the order of `weight_files`; its files are not opened."""
    choices = weight_choices(folder)
    names = {choice.variant for choice in choices} - {_NOT_AVERAGED}
    wanted = _PREFERRED if names & set(_PREFERRED) or len(names) > 1 else tuple(names)
    return next((choice for variant in wanted for choice in choices if choice.variant == variant), None)


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, in any format, or lists the files that do."""
    return Path(name).suffix in (".safetensors", *_OTHER_FORMATS) or ".index." in name


def _shards(index: Path) -> tuple[Path, ...]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: got no weight_map, wanted an object of tensor names and files")
    files = sorted({str(name) for name in weight_map.values()})
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index}: got file {name!r}, wanted plain *.safetensors names")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: got no file {name} beside it, wanted every shard that it lists")
    return tuple(index.parent / name for name in files)
