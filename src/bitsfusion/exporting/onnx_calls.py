"""What a pipeline asks of its networks while it draws: the calls that become ONNX graphs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.errors import InputError
from bitsfusion.pipelines.generation import generate_images

DECODER = "vae_decoder"
OUTPUT = "output"
"""What the tensors of a plain tuple are called: output, output.1 and so on."""
_PROMPTS = ("a", "b", "c")
_RENAMED = {"z": "latents"}


@dataclass(frozen=True)
class RecordedCall:
    """One call of a network.

    Fields:
        component: the network's name in the pipeline.
        method: forward, or a VAE's decode.
        arguments: by the names of the method's parameters, tensors and all else.
        inputs: name -> tensor, those of the arguments that are no constants.
        free: name -> the dimensions that follow the batch.
    """

    component: str
    method: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    free: Mapping[str, tuple[int, ...]]


class CallGraph(nn.Module):
    """A network as a function of its tensors alone: the other arguments are those of the recorded call."""

    def __init__(self, model: nn.Module, call: RecordedCall) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of the call's inputs."""
        values = dict(zip(self._call.inputs, tensors, strict=True))
        arguments = {name: _replaced(name, value, values) for name, value in self._call.arguments.items()}
        return tuple(named_outputs(getattr(self.model, self._call.method)(**arguments)).values())

    @torch.no_grad()
    def output_names(self) -> list[str]:
        """In the order of what `forward` returns."""
        return list(named_outputs(getattr(self.model, self._call.method)(**self._call.arguments)))


def recorded_calls(pipeline: Any, sampler: str, steps: int) -> dict[str, RecordedCall]:
    """The first call of every network, by the name of its graph; batches of 2 and 3 tell which dimensions follow them.

    Args:
        pipeline: one that draws from text; as it was afterwards.
        sampler, steps: as `generate_images` takes them, steps that the model has time features for.

    Raises:
        InputError: a network that is called with lists of tensors.
    """
    drawn = []
    for count in (2, 3):
        calls: dict[str, tuple[str, str, dict[str, Any]]] = {}
        with _watched(pipeline, calls):
            generate_images(pipeline, _PROMPTS[:count], range(count), steps, 2.0, sampler, batch_size=count)
        drawn.append(calls)
    made = {}
    for graph, (component, method, arguments) in drawn[0].items():
        other = _tensors(component, drawn[1][graph][2])
        inputs = _tensors(component, arguments)
        free = {name: tuple(_differing(tensor.shape, other[name].shape)) for name, tensor in inputs.items()}
        made[graph] = RecordedCall(component, method, arguments, inputs, free)
    return made


def named_outputs(result: Any) -> dict[str, Tensor]:
    """The tensors of what a network returns, each with a name."""
    if isinstance(result, Tensor):
        return {OUTPUT: result}
    pairs = result.items() if isinstance(result, Mapping) else ((_numbered(OUTPUT, i), x) for i, x in enumerate(result))
    made: dict[str, Tensor] = {}
    for name, value in pairs:
        if isinstance(value, (tuple, list)):
            made |= {f"{name}.{place}": tensor for place, tensor in enumerate(value)}
        elif isinstance(value, Tensor):
            made[name] = value
    return made


def bound_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a method's call by name, those among `**kwargs` too."""
    bound = dict(inspect.signature(function).bind(None, *args, **kwargs).arguments)
    bound.pop(next(iter(bound)))
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
    return bound


def named_tensors(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call by name, those in mappings too; a lone time step once for each sample."""
    made: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            made[_RENAMED.get(name, name)] = value
        elif isinstance(value, Mapping):
            made |= named_tensors(value)
    count = next((len(tensor) for tensor in made.values() if tensor.ndim), 1)
    return {name: tensor if tensor.ndim else tensor.float().expand(count) for name, tensor in made.items()}


def method_of(model: Any, method: str) -> Callable[..., Any]:
    """The method as its class has it."""
    found: Callable[..., Any] = inspect.unwrap(getattr(type(model), method))
    return found


@contextmanager
def replaced_method(model: Any, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """A model whose method is another function while the block runs."""
    object.__setattr__(model, method, function)
    try:
        yield
    finally:
        object.__delattr__(model, method)


def networks(pipeline: Any) -> dict[str, tuple[str, str]]:
    """Graph -> component and method, of every network that a pipeline may call to draw from text."""
    denoiser = pipeline_denoiser(pipeline)
    made = {
        name: (name, "forward")
        for name, component in pipeline.components.items()
        if isinstance(component, nn.Module) and (name.startswith("text_encoder") or component is denoiser)
    }
    return made | {DECODER: ("vae", "decode")}


@contextmanager
def _watched(pipeline: Any, calls: dict[str, tuple[str, str, dict[str, Any]]]) -> Iterator[None]:
    """Keeps the first call of every network."""
    with ExitStack() as stack:
        for graph, (component, method) in networks(pipeline).items():
            model = getattr(pipeline, component)
            stack.enter_context(replaced_method(model, method, _watch(model, method, graph, component, calls)))
        yield


def _watch(
    model: Any, method: str, graph: str, component: str, calls: dict[str, tuple[str, str, dict[str, Any]]]
) -> Callable[..., Any]:
    inner = getattr(model, method)

    def called(*args: Any, **kwargs: Any) -> Any:
        if graph not in calls:
            calls[graph] = (component, method, bound_arguments(method_of(model, method), args, kwargs))
        return inner(*args, **kwargs)

    return called


def _tensors(component: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, value in arguments.items():
        if isinstance(value, (list, tuple)) and any(isinstance(each, Tensor) for each in value):
            raise InputError(f"{component}: got a model that takes lists of tensors ({name}), wanted plain tensors")
    return named_tensors(arguments)


def _replaced(name: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return tensors[_RENAMED.get(name, name)]
    if isinstance(value, Mapping):
        return {key: _replaced(key, each, tensors) for key, each in value.items()}
    return value


def _differing(shape: torch.Size, other: torch.Size) -> Iterator[int]:
    return (place for place, (one, two) in enumerate(zip(shape, other, strict=True)) if one != two)


def _numbered(name: str, place: int) -> str:
    return f"{name}.{place}" if place else name
