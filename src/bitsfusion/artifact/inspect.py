"""Where every byte of a packed model is, and what a whole pipeline takes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsfusion.artifact.limits import shown
from bitsfusion.artifact.payload import scale_frame_bytes
from bitsfusion.artifact.reader import PackedFolder, component_named, open_components, open_folder
from bitsfusion.artifact.schema import PACKED_SUFFIX, TIME_TENSORS, PackedEntry
from bitsfusion.artifact.verify import check_stored
from bitsfusion.numerics.levels import level_count
from bitsfusion.packing.accounting import FileBytes, LayerSize
from bitsfusion.packing.entropy import counted_entropy, level_counts
from bitsfusion.pipelines.completeness import read_shapes
from bitsfusion.pipelines.weight_files import is_weights


@dataclass(frozen=True)
class LayerInspection:
    """One packed layer.

    Fields:
        kind: what it is there for, in words: shortcut, modulation and so on.
        bits, levels: b and 2^b + 1.
        shape, weights: of the weight tensor.
        entropy: of its levels, order 0, in bits a weight.
        bytes_on_disk: its tensor in the file, scales included.
        bytes_in_memory: its buffer, scales included.
        scale_bytes_on_disk: the part of `bytes_on_disk` that is scales.
        scale_bytes_in_memory: the part of `bytes_in_memory` that is scales, 4 an output channel.
    """

    name: str
    kind: str
    bits: int
    levels: int
    shape: tuple[int, ...]
    weights: int
    entropy: float
    bytes_on_disk: int
    bytes_in_memory: int
    scale_bytes_on_disk: int
    scale_bytes_in_memory: int


@dataclass(frozen=True)
class RemovedLayers:
    """The layers of the time step alone that stored features stand for.

    Fields:
        layers, weights: how many are gone.
        bits: about what they have where they stay: 8, of a transformer's modulation 2.
        layer_bytes: what they would take packed at `bits`, scales included.
        feature_bytes: what the stored features take.
        saved: `layer_bytes` less `feature_bytes`; below 0 where rows of many steps take more.
    """

    layers: int
    weights: int
    bits: int
    layer_bytes: int
    feature_bytes: int
    saved: int


@dataclass(frozen=True)
class Inspection:
    """A packed model.

    Fields:
        path: the model's folder.
        average_bits: by the paper's formula (Appendix H): levels and time features, over all weights.
        true_bits: the same things, as on disk: 8 (zstd frames + time features) / all weights.
        file_bits: 8 x the weight files, scales, biases, norms and header included, / all weights.
        entropy_bits: order-0 entropy of all levels + 16 bits a time feature, / all weights.
        weights: of all Linear and Conv2d layers, the removed time layers included.
        removed_weights: of the time layers that are gone.
        bytes_on_disk: where every byte of the weight file, or of all its shards, is.
        bytes_in_memory: packed buffers, time features (16 bits) and other parameters (32 bits).
        bytes_fp16: what all weights and other parameters would take in 16 bits.
        time_features: `basis` with rank, error and knots, `cached` with steps and samplers, `layers_8bit` or `none`;
            and how many values are stored.
        removed: what these stand for and save; None where no features are stored.
        fallbacks: tensors with more than one dimension above 1 that are kept dense, by name and bytes; none is silent.
        notes: what is to be said of the model's class, such as that it has no family of its own, and what was not done
            as asked when it was packed, such as why modulation layers stayed.
        layers: in module order.
    """

    path: str
    average_bits: float
    true_bits: float
    file_bits: float
    entropy_bits: float
    weights: int
    removed_weights: int
    bytes_on_disk: FileBytes
    bytes_in_memory: int
    bytes_fp16: int
    time_features: dict[str, Any]
    removed: RemovedLayers | None
    fallbacks: dict[str, int]
    notes: tuple[str, ...]
    layers: tuple[LayerInspection, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `bytes_on_disk` gains `total`."""
        values = asdict(self)
        values["bytes_on_disk"]["total"] = self.bytes_on_disk.total
        values["layers"] = [{**layer, "shape": list(layer["shape"])} for layer in values["layers"]]
        return values


def inspect_folder(path: Path | str) -> Inspection:
    """Reads a packed model or pipeline folder and counts; of a pipeline, the packed UNet alone.

    Raises:
        InputError: no packed folder.
        ArtifactError: a layer that does not fit the model or cannot be decoded, by name. The values of the tensors
            beside the layers are not checked: see `verify_folder`.
    """
    return _inspect(open_folder(path))


@dataclass(frozen=True)
class ComponentSize:
    """What a component of a pipeline takes.

    Fields:
        name: its folder's.
        bytes_on_disk: all its files.
        packed: where the bytes are; None for what is as it was: a dense model, or no model at all.
        weights: whether there are weights among its files.
        parameters: of a model, of a packed one as `bytes_fp16` counts them (biases of removed layers are not known);
            None where there are weights in files other than safetensors.
    """

    name: str
    bytes_on_disk: int
    packed: Inspection | None
    weights: bool
    parameters: int | None

    @property
    def form(self) -> str:
        """`packed`, `dense`, or `no weights`."""
        return "packed" if self.packed is not None else "dense" if self.weights else "no weights"


def folder_sizes(path: Path) -> dict[str, int]:
    """Bytes of every part of a pipeline folder, by file or component: nothing is left out, nothing is opened."""
    return {part.name: sum(file.stat().st_size for file in _files(part)) for part in sorted(path.iterdir())}


def _files(part: Path) -> list[Path]:
    return sorted(file for file in (part.rglob("*") if part.is_dir() else (part,)) if file.is_file())


def inspect_pipeline(path: Path | str) -> tuple[ComponentSize, ...]:
    """Every part of a pipeline folder, the index included, so that the bytes add up to the folder's.

    Raises:
        InputError, ArtifactError: as `inspect_folder`; the component is named.
    """
    path = Path(path)
    packed, bytes_of = open_components(path), folder_sizes(path)
    sizes = []
    for part in sorted(path.iterdir()):
        inspection = None
        if part.name in packed:
            with component_named(part.name):
                inspection = _inspect(packed[part.name])
        weights = any(is_weights(file.name) for file in _files(part))
        parameters = _parameters(part) if inspection is None else inspection.bytes_fp16 // 2
        sizes.append(ComponentSize(part.name, bytes_of[part.name], inspection, weights, parameters))
    return tuple(sizes)


def _parameters(part: Path) -> int | None:
    """Values in the safetensors files of a dense component; None where there are weights in other files."""
    weights = [file for file in _files(part) if is_weights(file.name) and not file.name.endswith(".json")]
    if any(file.suffix != ".safetensors" for file in weights):
        return None
    return sum(math.prod(shape) for file in weights for shape, _ in read_shapes(file).values())


def _inspect(folder: PackedFolder) -> Inspection:
    config = folder.config
    expected, kind = folder.expected(), folder.architecture.kind
    layers: dict[str, LayerInspection] = {}
    others: dict[str, int] = {}
    fallbacks: dict[str, int] = {}
    with folder.tensors() as tensors:
        check_stored(expected, tensors)
        for name, buffer in tensors.buffers():
            entry = config.layers[name]
            counts = level_counts(buffer[entry.size.scale_bytes :], entry.size.weights, entry.bits)
            layers[name] = _layer(
                name, kind(name), entry, tensors.tensor(name + PACKED_SUFFIX), counted_entropy(counts)
            )
        for name, tensor in tensors.stored.items():
            if not name.endswith(PACKED_SUFFIX):
                others[name] = tensor.nbytes
                if sum(size > 1 for size in tensor.shape) > 1 and name not in TIME_TENSORS:
                    fallbacks[name] = tensor.nbytes
    size = sum(file.stat().st_size for file in folder.weight_files())
    in_order = [layers[name.removesuffix(PACKED_SUFFIX)] for name in expected if name.endswith(PACKED_SUFFIX)]
    features = sum(others.pop(name, 0) for name in TIME_TENSORS)
    scales = sum(layer.scale_bytes_on_disk for layer in in_order)
    frames = sum(layer.bytes_on_disk for layer in in_order) - scales
    rest = sum(others.values())
    on_disk = FileBytes(frames, scales, features, rest, header=size - frames - scales - features - rest)
    weights = sum(config.weights.values())
    removed = weights - sum(layer.weights for layer in in_order)
    return Inspection(
        path=str(folder.path),
        average_bits=config.average_bits,
        true_bits=8 * (frames + features) / weights,
        file_bits=8 * size / weights,
        entropy_bits=(sum(layer.entropy * layer.weights for layer in in_order) + 8 * features) / weights,
        weights=weights,
        removed_weights=removed,
        bytes_on_disk=on_disk,
        bytes_in_memory=sum(layer.bytes_in_memory for layer in in_order) + features + rest,
        bytes_fp16=2 * weights + rest // 2,
        time_features={**config.time_features.model_dump(mode="json"), "values": config.feature_values},
        removed=_removed(folder, features) if config.stores_features else None,
        fallbacks=fallbacks,
        notes=_notes(folder),
        layers=tuple(in_order),
    )


def _notes(folder: PackedFolder) -> tuple[str, ...]:
    written = folder.config.provenance.get("notes")
    texts = [folder.architecture.note, *(written if isinstance(written, list) else [])]
    return tuple(dict.fromkeys(shown(text) for text in texts if isinstance(text, str)))


def _removed(folder: PackedFolder, features: int) -> RemovedLayers:
    """`features`: bytes of those that are stored."""
    shapes, bits = folder.config.removed.values(), folder.architecture.time_bits
    sizes = [LayerSize(bits, math.prod(shape), shape[0]) for shape in shapes]
    packed = sum(size.bytes_in_memory for size in sizes)
    return RemovedLayers(len(sizes), sum(size.weights for size in sizes), bits, packed, features, packed - features)


def _layer(name: str, kind: str, entry: PackedEntry, payload: np.ndarray, entropy: float) -> LayerInspection:
    size = entry.size
    return LayerInspection(
        name=name,
        kind=kind,
        bits=entry.bits,
        levels=level_count(entry.bits),
        shape=entry.shape,
        weights=size.weights,
        entropy=entropy / size.weights,
        bytes_on_disk=payload.size,
        bytes_in_memory=size.bytes_in_memory,
        scale_bytes_on_disk=scale_frame_bytes(payload),
        scale_bytes_in_memory=size.scale_bytes,
    )
