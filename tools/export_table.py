"""The table of docs/how-to/export.md: what each export takes, and how far its pictures are from the packed folder's.

python tools/export_table.py WORK [MODEL BITS [COVER]]

MODEL (the embedded one at 1.99 bits unless given) is packed into WORK/packed with float16 scales, exported to every
target, read back by what reads it, and drawn with: one test prompt of each task of its world.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitsfusion
from bitsfusion.cli.options import time_cover
from bitsfusion.diffusion.denoise import pipeline_denoiser, with_denoiser
from bitsfusion.embedded import embedded_model
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.exporting.gguf import layers_read
from bitsfusion.exporting.onnx_runtime import use_graphs
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline

STEPS, SEED = 20, 1024
TARGETS: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "dense": ({}, "diffusers without this package", "whole pipeline"),
    "onnx": ({}, "ONNX Runtime", "whole pipeline"),
    "gguf": ({"names": "diffusers"}, "ComfyUI-GGUF, stable-diffusion.cpp, diffusers (not UNets)", "denoiser"),
}
"""Target -> its options, who reads it, what is in it."""


def draw(pipeline: Any, model: str) -> np.ndarray:
    """[n, h, w, 3] float32 of 255: one test prompt of each task, each with a seed of its own."""
    known = embedded_model(model)
    assert known is not None
    texts = world_prompts(known.world, "test", 1, 0).texts
    seeds = range(SEED, SEED + len(texts))
    return generate_images(pipeline, texts, seeds, STEPS, known.guidance, "own").astype(np.float32)


def from_dense(out: Path, packed: Path) -> Any:
    """The folder as any program of diffusers loads it."""
    return load_pipeline(str(out))


def from_gguf(out: Path, packed: Path) -> Any:
    """The packed pipeline with a denoiser of what gguf's own dequantization reads."""
    pipeline: Any = load_pipeline(str(packed))
    old = pipeline_denoiser(pipeline)
    config = {key: value for key, value in old.config.items() if key not in ("quantization_config", "bitsfusion_time")}
    model = type(old).from_config(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    read = {name: torch.from_numpy(values.copy()).reshape(shapes[name]) for name, values in layers_read(out)}
    model.load_state_dict(read)
    return with_denoiser(pipeline, model.eval())


def from_onnx(out: Path, packed: Path) -> Any:
    """The packed pipeline with ONNX Runtime in the place of its networks."""
    pipeline: Any = load_pipeline(str(packed))
    use_graphs(pipeline, out)
    return pipeline


READERS: Mapping[str, Callable[[Path, Path], Any]] = {"dense": from_dense, "gguf": from_gguf, "onnx": from_onnx}


def main(work: Path, model: str = "embedded", bits: str = "1.99", cover: str = "basis") -> None:
    """Prints a line a target."""
    packed = work / "packed"
    if not packed.exists():
        bitsfusion.init_pipeline(model, packed, bits=float(bits), samplers=time_cover([cover]), scale_dtype="float16")
    wanted = draw(load_pipeline(str(packed)), model)
    print("| format | holds | bytes | weights | who reads it | largest and mean difference of a pixel, of 255 |")
    print("|---|---|---|---|---|---|")
    print(f"| the packed folder | whole pipeline | {bytes_of(packed):,} | exact | diffusers with this package | 0, 0 |")
    for target, (options, readers, holds) in TARGETS.items():
        out = work / target
        made = bitsfusion.export(packed, target, out, **options)
        rounded = [share.type for share in made.shares if not share.exact]
        exact = f"rounded: {', '.join(rounded)}" if rounded else "exact"
        difference = np.abs(draw(READERS[target](out, packed), model) - wanted)
        shown = f"{difference.max():g}, {difference.mean():.2g}"
        print(f"| `--to {target}` | {holds} | {made.bytes:,} | {exact} | {readers} | {shown} |")


def bytes_of(folder: Path) -> int:
    """Of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
