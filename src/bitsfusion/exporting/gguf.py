"""`--to gguf`: the denoiser in one file, each layer in the smallest block type that holds its levels exactly."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitsfusion.architectures.original import Layout, Source, original_layout
from bitsfusion.architectures.unet import UNET
from bitsfusion.artifact.reader import PackedFolder
from bitsfusion.errors import InputError
from bitsfusion.exporting.exported import Exported, Progress, Tally, check_choice, written
from bitsfusion.exporting.gguf_blocks import BLOCK_TYPES, BlockType, Levels
from bitsfusion.exporting.original import packed_denoiser
from bitsfusion.exporting.weights import PackedWeights, open_weights
from bitsfusion.io.atomic import atomic_path, remove_leftovers
from bitsfusion.pipelines.resolve import resolve

NAMES = ("original", "diffusers")
"""Whose names the tensors have."""


@dataclass(frozen=True)
class _Rows:
    """A weight matrix as integers and a scale a row. Fields: levels [rows, columns]; scale [rows] float32."""

    levels: Levels
    scale: npt.NDArray[np.float32]


def export_gguf(
    model: str | Path, out: Path, types: str | None = None, names: str = NAMES[0], progress: Progress | None = None
) -> Exported:
    """The packed denoiser as a GGUF file; nothing else of a pipeline is in it.

    Weights are exact where their scales are float16 numbers (`--scale-dtype float16` when packing); others have their
    scales rounded. What fits no block type is F16 or, outside UNets where F16 would round it, F32. Biases and norms are
    F32.

    Args:
        model: a packed pipeline or model folder, or its hub id.
        out: a new file.
        types: block types that the reader knows, separated by commas; None for all of `BLOCK_TYPES`.
        names: whose names the tensors have: original (of the model's first repository: ComfyUI, stable-diffusion.cpp,
            diffusers' from_single_file) or diffusers.
        progress: is told of every packed layer.

    Raises:
        InputError: nothing packed, no gguf library, an unknown type, a file that is there, a class that no reader of
            GGUF knows, time layers that cannot be fitted.
        ArtifactError: a broken folder; names the layer.
        BitsFusionError: the disk.
    """
    library = _library()
    chosen = _chosen(types)
    check_choice("names", names, dict.fromkeys(NAMES))
    if out.exists():
        raise InputError(f"out: got {out}, which is there, wanted a new file")
    remove_leftovers(out)
    folder = packed_denoiser(resolve(model).path)
    tally, notes = Tally(), list[str]()
    with open_weights(folder) as weights, atomic_path(out) as temporary:
        tensors = _tensors(weights, progress, len(folder.config.layers))
        fitted = weights.time_layers(torch.float16)
        if fitted is not None:
            notes.append(f"{weights.time_note} (relative error {fitted.error:.1e})")
            tensors |= fitted.tensors
        layout = original_layout(folder.architecture.name, folder.model_config, tensors)
        if names == "diffusers":
            layout = Layout(layout.architecture, "", {name: Source((name,)) for name in tensors})
        writer = library.GGUFWriter(temporary, layout.architecture, use_temp_file=True)
        writer.add_quantization_version(library.GGML_QUANT_VERSION)
        is_unet = folder.architecture.name == UNET.name
        for name, source in layout.tensors.items():
            parts = [tensors.pop(part) for part in source.names]
            new = fitted is not None and not fitted.tensors.keys().isdisjoint(source.names)
            shape, kind, data = _stored(_joined(parts, source.swapped), chosen, is_unet, tally, new)
            if len(shape) == 2 and kind in BLOCK_TYPES:
                writer.add_tensor(name, data, raw_dtype=library.GGMLQuantizationType[kind.upper()])
            else:
                writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    shares = tally.shares()
    if is_unet:
        notes.append(_cost_of_convolutions(folder))
    if any(share.type.lower() in BLOCK_TYPES and not share.exact for share in shares):
        notes.append("scales were rounded to float16: pack with --scale-dtype float16 for exact weights")
    return written(out, "gguf", tally, notes)


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise InputError("gguf: got no such library, wanted it: pip install 'bitsfusion[export]'") from None


def _chosen(types: str | None) -> tuple[BlockType, ...]:
    """In their order: the smallest first."""
    if types is None:
        return tuple(BLOCK_TYPES.values())
    asked = [name.strip().lower() for name in types.split(",")]
    for name in asked:
        check_choice("types", name, BLOCK_TYPES)
    return tuple(kind for name, kind in BLOCK_TYPES.items() if name in asked)


def _tensors(weights: PackedWeights, progress: Progress | None, total: int) -> dict[str, _Rows | Tensor]:
    """Every tensor of the dense model but fitted ones, packed ones as integers (int16 in memory)."""
    made: dict[str, _Rows | Tensor] = {}
    for done, layer in enumerate(weights.layers(), 1):
        levels = layer.levels
        if levels.ndim == 2:
            made[f"{layer.name}.weight"] = _Rows(levels.numpy(), layer.scale.numpy().copy())
        else:
            made[f"{layer.name}.weight"] = layer.weight
        if progress is not None:
            progress(done, total)
    return made | dict(weights.others)


def _joined(parts: Sequence[_Rows | Tensor], swapped: bool) -> _Rows | Tensor:
    """One below the other; the lower half first where it is swapped."""
    rows = [part for part in parts if isinstance(part, _Rows)]
    if len(rows) == len(parts):
        levels, scale = np.concatenate([part.levels for part in rows]), np.concatenate([part.scale for part in rows])
        half = len(scale) // 2 if swapped else 0
        return _Rows(np.roll(levels, half, 0), np.roll(scale, half, 0))
    joined = torch.cat([part for part in parts if isinstance(part, Tensor)]) if len(parts) > 1 else parts[0]
    assert isinstance(joined, Tensor)
    return joined.roll(len(joined) // 2, 0) if swapped else joined


def _stored(
    tensor: _Rows | Tensor, chosen: Sequence[BlockType], is_unet: bool, tally: Tally, fitted: bool
) -> tuple[tuple[int, ...], str, npt.NDArray[Any]]:
    """Shape, type and data."""
    if isinstance(tensor, _Rows):
        with np.errstate(over="ignore"):
            scale = tensor.scale.astype(np.float16)
        for kind in chosen if bool(np.isfinite(scale).all()) else ():
            signs = kind.signs(tensor.levels)
            if signs is not None:
                data = kind.pack(tensor.levels, scale, signs)
                exact = bool((scale.astype(np.float32) == tensor.scale).all())
                tally.add(kind.name, tensor.levels.size, data.nbytes, exact)
                return tensor.levels.shape, kind.name.lower(), data
        tensor = torch.from_numpy(tensor.levels).float() * torch.from_numpy(tensor.scale)[:, None]
    half = tensor.half()
    exact = torch.equal(half.to(tensor.dtype), tensor)
    small = tensor.ndim > 1 and (exact or is_unet) and bool(torch.isfinite(half).all())
    stored = half if small else tensor.float()
    kind_name = "F16" if small else "F32"
    same = exact or not small
    tally.add(f"{kind_name}, fitted" if fitted else kind_name, stored.numel(), stored.nbytes, same and not fitted)
    return tuple(tensor.shape), kind_name.lower(), stored.contiguous().numpy()


def _cost_of_convolutions(folder: PackedFolder) -> str:
    """What readers' wish for F16 convolutions costs."""
    entries: Mapping[str, Any] = folder.config.layers
    convolutions = [entry for entry in entries.values() if len(entry.shape) > 2]
    dense = sum(2 * entry.size.weights for entry in convolutions)
    packed = sum(entry.size.bytes_in_memory for entry in convolutions)
    return (
        f"convolutions are F16, for no reader of GGUF takes them in blocks: {dense / 1e6:.1f} MB "
        f"in the place of {packed / 1e6:.1f} MB"
    )


def layers_read(path: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Name and dequantized values of every tensor of a GGUF file, by the library's own code."""
    library = _library()
    for tensor in library.GGUFReader(path).tensors:
        yield tensor.name, library.dequantize(tensor.data, tensor.tensor_type)
