"""A pipeline whose networks are the graphs of `--to onnx`, run by ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.exporting.onnx_calls import OUTPUT, bound_arguments, method_of, named_tensors, networks

_DTYPES = {"float": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}


def use_graphs(pipeline: Any, graphs: Path, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
    """Puts the graphs of a folder in the place of a pipeline's networks; its other parts draw as they did.

    Args:
        pipeline: of the packed folder that was exported, on the CPU.
        graphs: what `bitsfusion export --to onnx` wrote.
        providers: of ONNX Runtime, the first that is there is used.

    Raises:
        InputError: no onnxruntime, or a folder without one of the graphs.
    """
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        raise InputError("onnxruntime: got no such library, wanted it: pip install 'bitsfusion[export]'") from None
    for graph, (component, method) in networks(pipeline).items():
        path = graphs / f"{graph}.onnx"
        if not path.is_file():
            raise InputError(f"{graphs}: got no {path.name}, wanted a folder that export --to onnx wrote")
        options = runtime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = runtime.InferenceSession(path, options, providers=list(providers))
        model = getattr(pipeline, component)
        object.__setattr__(model, method, _caller(session, method_of(model, method)))


class _Outputs:
    """A model's outputs by name and by place, as those of transformers."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def __getitem__(self, place: int) -> Any:
        return list(self.__dict__.values())[place]


def _caller(session: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    types = {found.name: found.type.removeprefix("tensor(").removesuffix(")") for found in session.get_inputs()}
    wanted = {name: _DTYPES[kind] for name, kind in types.items()}
    names = [found.name for found in session.get_outputs()]

    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = named_tensors(bound_arguments(method, args, kwargs))
        inputs = {name: _array(tensors[name], dtype) for name, dtype in wanted.items()}
        outputs = dict(zip(names, map(torch.from_numpy, session.run(names, inputs)), strict=True))
        if names[0] == OUTPUT:
            return tuple(outputs.values())
        return _Outputs(_grouped(outputs))

    return call


def _array(tensor: Tensor, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return tensor.numpy().astype(dtype)


def _grouped(outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """hidden_states.0, .1 ... as one tuple."""
    made: dict[str, Any] = {}
    for name, tensor in outputs.items():
        group, _, place = name.partition(".")
        made[group] = (*made.get(group, ()), tensor) if place else tensor
    return made
