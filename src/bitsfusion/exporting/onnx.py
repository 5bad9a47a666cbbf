"""`--to onnx`: text encoder, denoiser and VAE decoder as ONNX graphs, packed weights as integers with their scales."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitsfusion.artifact.reader import PackedFolder, open_components
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.diffusion.samplers import OWN
from bitsfusion.errors import InputError
from bitsfusion.exporting.exported import Exported, Progress, Tally, check_new_folder, written
from bitsfusion.exporting.onnx_calls import CallGraph, RecordedCall, recorded_calls
from bitsfusion.exporting.original import packed_denoiser
from bitsfusion.exporting.traced import traced
from bitsfusion.exporting.weights import PackedLayer, open_weights
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.pipelines.resolve import resolve

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "Flux2KleinPipeline",
    "AuraFlowPipeline",
)
"""Those whose pictures by ONNX Runtime are compared with torch's in the tests."""
_MASKS = "torch's exporter does not take its attention masks with a free batch"
REFUSED: Mapping[str, str] = {
    "PixArtAlphaPipeline": _MASKS,
    "PixArtSigmaPipeline": _MASKS,
    "QwenImagePipeline": "it turns positions by complex numbers, which ONNX has not",
    "ZImagePipeline": "it hands its transformer lists of tensors, which a graph cannot take",
}
"""Those that were tried, and what is in the way."""
NOTE = "in ONNX Runtime set session.disable_quant_qdq to 1: otherwise it may round activations to int8"
_EXTERNAL = 1024  # bytes from which a tensor lies in the file beside the graph


def export_onnx(model: str | Path, out: Path, progress: Progress | None = None) -> Exported:
    """A folder with a graph for each text encoder, the denoiser and the VAE's decoder, weights in `.onnx.data` files.

    A graph is one call of the network as the pipeline makes it: its inputs have the names of the parameters, its
    outputs those of the results (`output` where they have none).

    A packed layer is DequantizeLinear(levels, scale): int4 where every level fits four bits, else int8; rows that hold
    the upper end alone have their signs turned, and rows with both ends of b = 8 make the layer int16. The product is
    the packed weight, bit for bit. All else is float32. The batch is free; height and width are the model's own.

    Args:
        model: the folder of a packed pipeline of `PIPELINES`, or its hub id.
        out: a new folder.
        progress: is told of every graph.

    Raises:
        InputError: nothing packed, no onnx libraries, another kind of pipeline, a folder that is there.
        ArtifactError: a broken folder; names the layer.
        BitsFusionError: the disk.
    """
    onnx = _library()
    check_new_folder(out)
    source = resolve(model)
    if source.class_name not in PIPELINES:
        reason = REFUSED.get(str(source.class_name))
        wanted = ", ".join(PIPELINES) + (f": {reason}" if reason else "")
        got = source.class_name or "folder that is no pipeline"
        raise InputError(f"model: got a {got} ({source.path}), wanted one of {wanted}")
    packed = open_components(source.path)
    verify_folder(source.path)
    pipeline: Any = load_pipeline(source)
    for name in packed:
        getattr(pipeline, name).dequantize()
    calls = recorded_calls(pipeline, *_sampling(packed_denoiser(source.path)))
    tally = Tally()
    with atomic_folder(out) as temporary:
        for done, (name, call) in enumerate(calls.items(), 1):
            component = call.component
            graph = _traced(pipeline, call)
            layers: dict[str, PackedLayer] = {}
            if component in packed:
                with open_weights(packed[component]) as weights:
                    layers = {f"model.{layer.name}.weight": layer for layer in weights.layers()}
            _with_integers(onnx, graph, layers, tally)
            onnx.save(
                graph,
                temporary / f"{name}.onnx",
                save_as_external_data=True,
                location=f"{name}.onnx.data",
                size_threshold=_EXTERNAL,
            )
            if progress is not None:
                progress(done, len(calls))
    return written(out, "onnx", tally, [NOTE])


def _library() -> Any:
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise InputError(f"onnx: got no {error.name} library, wanted it: pip install 'bitsfusion[export]'") from None


def _sampling(denoiser: PackedFolder) -> tuple[str, int]:
    """A sampler, and a number of its steps that the model serves."""
    features = denoiser.config.time_features
    if features.kind == "cached":
        if not features.samplers:
            raise InputError("time features: got rows of no named sampler, wanted such as --cover pndm:50")
        return features.samplers[0].name, features.samplers[0].steps
    return OWN, 2


def _traced(pipeline: Any, call: RecordedCall) -> Any:
    """The graph of a call in float32, a ModelProto."""
    wrapped = CallGraph(getattr(pipeline, call.component), call)
    inputs = {name: tensor.contiguous() for name, tensor in call.inputs.items()}
    free = (tuple(dict.fromkeys(places, "batch") for places in call.free.values()),)
    return traced(wrapped, inputs, wrapped.output_names(), free).model_proto


def _with_integers(onnx: Any, graph: Any, layers: Mapping[str, PackedLayer], tally: Tally) -> None:
    """Puts DequantizeLinear in the place of every packed weight that the graph has."""
    kept, nodes = [], []
    for tensor in graph.graph.initializer:
        layer = layers.get(tensor.name)
        if layer is None:
            kept.append(tensor)
            values = onnx.numpy_helper.to_array(tensor)
            tally.add(str(values.dtype), values.size, values.nbytes)
            continue
        integers, scale, kind = _integers(layer)
        stored = onnx.helper.make_tensor(
            f"{tensor.name}.levels", getattr(onnx.TensorProto, kind), integers.shape, _raw(integers, kind), raw=True
        )
        kept += [stored, onnx.numpy_helper.from_array(scale, f"{tensor.name}.scale")]
        nodes.append(
            onnx.helper.make_node("DequantizeLinear", [stored.name, f"{tensor.name}.scale"], [tensor.name], axis=0)
        )
        tally.add(kind.lower(), integers.size, (integers.size * int(kind[3:]) + 7) // 8 + scale.nbytes)
    nodes += list(graph.graph.node)
    del graph.graph.initializer[:], graph.graph.node[:]
    graph.graph.initializer.extend(kept)
    graph.graph.node.extend(nodes)
    for node in graph.graph.node:
        del node.metadata_props[:]  # where in Python each came from: megabytes
    for value in [value for value in graph.graph.value_info if value.name in layers]:
        graph.graph.value_info.remove(value)


def _raw(integers: npt.NDArray[np.int16], kind: str) -> bytes:
    """As ONNX stores them: of four bits, two a byte, the first in the lower half."""
    flat = integers.ravel()
    if kind != "INT4":
        return flat.astype(np.int8 if kind == "INT8" else np.int16).tobytes()
    nibbles = np.append(flat, np.zeros(flat.size % 2, dtype=np.int16)).astype(np.uint8) & np.uint8(15)
    return (nibbles[::2] | (nibbles[1::2] << np.uint8(4))).tobytes()


def _integers(layer: PackedLayer) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32], str]:
    """Levels and scale a row, and the narrowest type that holds them."""
    levels, scale = layer.levels.numpy(), layer.scale.numpy().copy()
    rows = levels.reshape(len(levels), -1)
    for kind, end in (("INT4", 8), ("INT8", 128)):
        turned = (rows.max(axis=1) >= end) & (rows.min(axis=1) > -end)
        signs = np.where(turned, np.int16(-1), np.int16(1))
        made = rows * signs[:, None]
        if made.min() >= -end and made.max() < end:
            return made.reshape(levels.shape), scale * signs.astype(np.float32), kind
    return levels, scale, "INT16"
