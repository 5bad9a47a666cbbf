"""One door to every target of an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitsfusion.errors import InputError
from bitsfusion.exporting.dense import export_dense
from bitsfusion.exporting.exported import Exported, Progress, check_choice
from bitsfusion.exporting.gguf import export_gguf
from bitsfusion.exporting.onnx import export_onnx
from bitsfusion.exporting.web.web import export_web

TARGETS: Mapping[str, tuple[Callable[..., Exported], tuple[str, ...]]] = {
    "dense": (export_dense, ("dtype",)),
    "gguf": (export_gguf, ("types", "names")),
    "onnx": (export_onnx, ()),
    "web": (export_web, ("vendor",)),
}
"""What `to` may be: the function, and the options it takes."""


def export(
    model: str | Path,
    to: str,
    out: str | Path,
    *,
    dtype: str | None = None,
    types: str | None = None,
    names: str | None = None,
    vendor: str | Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Carries a packed folder over to what other programs read.

    Args:
        model: a packed pipeline or model folder, or its hub id.
        to: dense (an ordinary diffusers folder), gguf (the denoiser in one file), onnx (a graph for
            each of text encoder, UNet and VAE decoder), web (a page that draws in the browser).
        out: the new folder or file.
        dtype: of a dense folder's weights: float16 (the default), bfloat16, float32.
        types: of a GGUF file's blocks: those that its reader knows, such as q4_0,q8_0,q2_k (all by default).
        names: of a GGUF file's tensors: original (the default) or diffusers.
        vendor: a folder with the page's third-party scripts as `npm pack` gives them (npm is called by default).
        progress: is told of every packed layer: how many are done, and how many there are.

    Returns:
        Where the bytes are, and what to know about the result.

    Raises:
        InputError: nothing packed, a target or an option that is not known, a folder that is there or within `model`.
        ArtifactError: a broken folder; names the layer.
        BitsFusionError: the disk.
    """
    check_choice("to", to, TARGETS)
    function, known = TARGETS[to]
    options: dict[str, Any] = {"dtype": dtype, "types": types, "names": names, "vendor": vendor}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            raise InputError(f"{name}: got a value with to={to!r}, wanted it with {_takers(name)} only")
    if Path(model).is_dir() and Path(out).resolve().is_relative_to(Path(model).resolve()):
        raise InputError(f"out: got {out}, which is in the packed folder, wanted a place outside of it")
    return function(model, Path(out), progress=progress, **given)


def _takers(option: str) -> str:
    return " or ".join(name for name, (_, known) in TARGETS.items() if option in known)
