"""The parts of a model that are calibrated one after another, in the order in which a forward pass comes to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.calibration.trajectories import Call
from bitsfusion.calibration.trees import Tree, map_tensors, tensors_of
from bitsfusion.diffusion.denoise import denoise_as

MAX_LAYERS = 16
"""The most layers of a block, which runs again for every group of them: small blocks save time, large ones disk."""


@dataclass(frozen=True)
class Block:
    """A module that runs once in a forward pass.

    Fields:
        name: of the module; "" is the whole model.
        groups: its layers in the order they run in; those of a group have the same input.
        sources: the blocks whose outputs its inputs are made of.
        repeated: layers that run more than once.
    """

    name: str
    groups: tuple[tuple[str, ...], ...]
    sources: frozenset[str]
    repeated: frozenset[str]

    @property
    def layers(self) -> tuple[str, ...]:
        """All of them, in order."""
        return tuple(name for group in self.groups for name in group)


@torch.no_grad()
def find_blocks(model: nn.Module, call: Call, layers: Collection[str]) -> list[Block]:
    """The largest modules with at most `MAX_LAYERS` of `layers` that run once in a forward pass, in its order.

    Layers that never run, or that run more than once by themselves, are in no block.

    Args:
        model: in evaluation mode.
        call: the model runs twice on it.
        layers: names of Linear and Conv2d layers.
    """
    trace = _traced(model, call, layers)
    names = sorted(_descend(model, "", trace), key=lambda name: min(run.order for run in trace.inside(name)))
    sources = _sources(model, call, names)
    counts = trace.counts
    return [
        Block(name, groups, sources[name], frozenset(layer for group in groups for layer in group if counts[layer] > 1))
        for name in names
        for groups in (_groups(trace.inside(name), model),)
    ]


@dataclass(frozen=True)
class _Run:
    """One run of a layer: which input it had, and the modules that were at work around it."""

    layer: str
    order: int
    input: tuple[object, ...]
    around: frozenset[str]


@dataclass
class _Trace:
    runs: list[_Run] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def inside(self, name: str) -> list[_Run]:
        """The runs of the layers below a module, in order."""
        return [run for run in self.runs if not name or run.layer == name or run.layer.startswith(f"{name}.")]


def _traced(model: nn.Module, call: Call, layers: Collection[str]) -> _Trace:
    trace, active = _Trace(), [""]
    kept: list[Tensor] = []  # alive until the end, so that no two inputs share an address
    wanted = set(layers)

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            trace.counts[name] = trace.counts.get(name, 0) + 1
            active.append(name)
            if name in wanted:
                tensor = args[0]
                kept.append(tensor)
                key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version)
                trace.runs.append(_Run(name, len(trace.runs), key, frozenset(active)))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(lambda *_: active.pop() and None).remove)
        denoise_as(model, call.args, call.kwargs)
    return trace


def _descend(module: nn.Module, name: str, trace: _Trace) -> list[str]:
    runs = trace.inside(name)
    if not runs:
        return []
    once = trace.counts.get(name) == 1 and all(name in run.around for run in runs)
    if once and len({run.layer for run in runs}) <= MAX_LAYERS:
        return [name]
    return [
        found
        for child, part in module.named_children()
        for found in _descend(part, f"{name}.{child}" if name else child, trace)
    ]


def _groups(runs: list[_Run], model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Linear layers that run one after another on the same input stand together."""
    groups: list[list[str]] = []
    last: tuple[object, ...] | None = None
    seen: set[str] = set()
    for run in runs:
        if run.layer in seen:
            continue
        seen.add(run.layer)
        linear = isinstance(model.get_submodule(run.layer), nn.Linear)
        if linear and run.input == last:
            groups[-1].append(run.layer)
        else:
            groups.append([run.layer])
        last = run.input if linear else None
    return tuple(tuple(group) for group in groups)


@torch.enable_grad()
def _sources(model: nn.Module, call: Call, names: list[str]) -> dict[str, frozenset[str]]:
    """Which blocks' outputs each block's inputs are computed from, as autograd tells."""
    outputs: dict[str, list[Tensor]] = {}
    inputs: dict[str, list[Tensor]] = {}

    def around(name: str) -> Any:
        own = model.get_submodule(name).forward

        def forward(*args: Tree, **kwargs: Tree) -> Tree:
            inputs[name] = [tensor for tensor in tensors_of((args, kwargs)) if tensor.requires_grad]
            with torch.no_grad():
                made = own(*args, **kwargs)
            leaves = map_tensors(made, lambda tensor: tensor.detach().requires_grad_(tensor.is_floating_point()))
            outputs[name] = [tensor for tensor in tensors_of(leaves) if tensor.requires_grad]
            return leaves

        return forward

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(forward_replaced(model.get_submodule(name), around(name)))
        denoise_as(model, call.args, call.kwargs)
    found = {}
    for name in names:
        leaves = [(source, leaf) for source in outputs for leaf in outputs[source]]
        reached: tuple[Tensor | None, ...] = ()
        if inputs[name]:
            total = sum((tensor.sum() for tensor in inputs[name]), start=torch.zeros((), device=inputs[name][0].device))
            reached = torch.autograd.grad(total, [leaf for _, leaf in leaves], retain_graph=True, allow_unused=True)
        found[name] = frozenset(s for (s, _), grad in zip(leaves, reached, strict=False) if grad is not None)
    return found


@contextmanager
def forward_replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """The module with another forward, its own again afterwards."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
