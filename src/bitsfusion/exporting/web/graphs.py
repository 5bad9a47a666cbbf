"""ONNX graphs without weights, for a page that decodes these itself.

A model is traced on meta, so that no weight is ever held. Each parameter is a tensor in one outside buffer, whose
layout is written down beside the graph: a packed layer is DequantizeLinear(levels, scale), its levels int4 up to b = 3
and int8 up to b = 7; of b = 8, whose levels fit no byte, and of everything else the buffer holds float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.artifact.schema import PackedEntry
from bitsfusion.diffusion.time_features import place_time_features
from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.exporting.traced import Decoder as Decoder
from bitsfusion.exporting.traced import MaskedTextEncoder as MaskedTextEncoder
from bitsfusion.exporting.traced import TextEncoder as TextEncoder
from bitsfusion.exporting.traced import TimedTransformer as TimedTransformer
from bitsfusion.exporting.traced import TimedUNet as TimedUNet
from bitsfusion.exporting.traced import traced

LOCATION = "weights"
"""What graphs call the buffer."""
_PREFIX = "model."
_ALIGNED = 64
_INT4, _INT8 = 3, 7  # the most bits whose levels they hold


@dataclass
class Layout:
    """Where a graph's weights are in its buffer.

    Fields:
        tensors: (name in the packed model, stored as, offset, numbers); stored as int4, int8, float32, or scale: the
            float32 scales of the layer before it.
        bytes: of the whole buffer.
    """

    tensors: list[tuple[str, str, int, int]] = field(default_factory=list)
    bytes: int = 0

    def add(self, name: str, kind: str, numbers: int) -> tuple[int, int]:
        """Room for one more: its offset and length."""
        length = {"int4": (numbers + 1) // 2, "int8": numbers}.get(kind, 4 * numbers)
        offset = self.bytes
        self.tensors.append((name, kind, offset, numbers))
        self.bytes = -(-(offset + length) // _ALIGNED) * _ALIGNED
        return offset, length


class Featured(nn.Module):
    """A denoiser without time layers: their outputs [batch, channels] are its second input.

    Args:
        timed: one with a time step for its second input; loses its time layers.
        channels: of their outputs.
    """

    def __init__(self, timed: TimedUNet | TimedTransformer, channels: int) -> None:
        super().__init__()
        self._given = _Given(channels)
        place_time_features(timed.model, self._given)  # type: ignore[arg-type]  # which asks for its channels alone
        self.model = timed.model
        self._timed = (timed,)  # in a tuple: its model is registered once

    def forward(self, sample: Tensor, time_features: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        self._given.features.append(time_features)
        prediction: Tensor = self._timed[0](sample, time_features[:, 0], encoder_hidden_states)
        self._given.features.clear()
        return prediction


class _Given(nn.Module):
    """Stands where a denoiser computes its time features: those that it was handed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.features: list[Tensor] = []

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.features[-1]


def write_graph(
    wrapped: nn.Module, inputs: Mapping[str, Tensor], layers: Mapping[str, PackedEntry], path: Path
) -> Layout:
    """Traces a model on meta and writes its graph.

    Args:
        wrapped: `Featured`, or one of `exporting.traced`.
        inputs: by name, on meta, two samples each; the batch is free in the graph, all other sizes are these.
        layers: the packed ones, by name.
        path: of the .onnx file.

    Returns:
        Where the page has to put which weight.

    Raises:
        InputError: no onnx libraries.
        BitsFusionError: a constant of the model that is not known here.
    """
    ir, optimizer = _libraries()
    model: Any = traced(wrapped, inputs).model
    parameters = _as_inputs(ir, model.graph, wrapped)
    optimizer.optimize_ir(model)
    del model.graph.inputs[len(inputs) :]
    layout = Layout()
    for value in parameters:
        if value.uses():
            _place(ir, model.graph, value, layers, layout)
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        del node.metadata_props[:]  # where in Python each came from: megabytes
    path.write_bytes(proto.SerializeToString())
    return layout


def _libraries() -> tuple[Any, Any]:
    try:
        ir, optimizer = (importlib.import_module(name) for name in ("onnx_ir", "onnxscript.optimizer"))
    except ImportError as error:
        raise InputError(f"web: got no {error.name} library, wanted it: pip install 'bitsfusion[export]'") from None
    return ir, optimizer


def _as_inputs(ir: Any, graph: Any, wrapped: nn.Module) -> list[Any]:
    """Makes inputs of a graph's parameters, so that the optimizer leaves them be; constants are given their values."""
    stored = {f"{_PREFIX}{name}" for name in wrapped.model.state_dict()}  # type: ignore[union-attr]
    parameters = []
    for name, value in list(graph.initializers.items()):
        if name in stored:
            value.const_value = None
            del graph.initializers[name]
            graph.inputs.append(value)
            parameters.append(value)
        elif name.endswith(".position_ids"):  # of CLIP's text encoders; no weight, and so not in any file
            value.const_value = ir.tensor(torch.arange(value.shape[-1]).expand(*value.shape).numpy(), name=name)
        elif getattr(value.const_value, "raw", None) is not None and value.const_value.raw.is_meta:
            raise BitsFusionError(f"{name}: got a constant that is not in the model's files, wanted none")
    return parameters


def _place(ir: Any, graph: Any, value: Any, layers: Mapping[str, PackedEntry], layout: Layout) -> None:
    """Gives a parameter its place in the buffer; a packed layer's becomes a product."""
    name, shape = value.name.removeprefix(_PREFIX), tuple(int(size) for size in value.shape)
    numbers = int(torch.Size(shape).numel())

    def outside(stored_name: str, kind: str, stored_shape: tuple[int, ...]) -> Any:
        offset, length = layout.add(name, kind, int(torch.Size(stored_shape).numel()))
        dtype = {"int4": ir.DataType.INT4, "int8": ir.DataType.INT8}.get(kind, ir.DataType.FLOAT)
        tensor = ir.ExternalTensor(LOCATION, offset, length, dtype, shape=ir.Shape(stored_shape), name=stored_name)
        made = ir.Value(name=stored_name, shape=ir.Shape(stored_shape), type=ir.TensorType(dtype), const_value=tensor)
        graph.initializers[stored_name] = made
        return made

    layer = layers.get(name.removesuffix(".weight"))
    if layer is None or layer.bits > _INT8 or not name.endswith(".weight"):
        ir.convenience.replace_all_uses_with(value, outside(value.name, "float32", shape))
        return
    kind = "int4" if layer.bits <= _INT4 else "int8"
    levels = outside(f"{value.name}.levels", kind, shape)
    scale = outside(f"{value.name}.scale", "scale", shape[:1])
    output = ir.Value(name=value.name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node(
        "",
        "DequantizeLinear",
        [levels, scale],
        [ir.AttrInt64("axis", 0)],
        outputs=[output],
        name=f"{value.name}.product",
    )
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(value, output)
    assert numbers == layer.size.weights
