"""A model's calibration: block after block in the order of the forward pass, each layer solved on what it will see."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.calibration.blocks import Block, find_blocks
from bitsfusion.calibration.factor import Factored
from bitsfusion.calibration.journal import BlockJournal
from bitsfusion.calibration.layer import CalibratedLayer, calibrated_layer, group_factors, weight_only_layer
from bitsfusion.calibration.moments import MomentSum
from bitsfusion.calibration.playback import BlockInputs, Inputs, Outputs, Playback, Side
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import Call
from bitsfusion.io.schema import named
from bitsfusion.nn.replace import layers_of
from bitsfusion.progress import Progress, silent


@dataclass(frozen=True)
class Calibration:
    """Every layer's codes, scale and bias by name, and in plain words what was not done as asked."""

    layers: Mapping[str, CalibratedLayer]
    notes: tuple[str, ...] = ()


@torch.no_grad()
def calibrate(
    model: nn.Module,
    bits: Mapping[str, int],
    calls: Sequence[Call],
    settings: CalibrationSettings | None = None,
    progress: Progress = silent,
    folder: Path | None = None,
) -> Calibration:
    """Codes, scales and biases of least output error, without training.

    Layers are solved in the order in which a forward pass comes to them. The inputs of a layer are those of the model
    quantized so far, the outputs aimed at are the original's (asymmetric, as in GPTAQ).

    Args:
        model: full precision, in evaluation mode, on the device to compute on; unchanged afterwards.
        bits: layer name -> 1..8; other layers stay as they are.
        calls: what it is called with, see `trajectories`.
        settings: the defaults where None.
        progress: told after every group of layers.
        folder: keeps what is done, block after block: with the same arguments and folder, killed work continues and
            ends with the same result (finished blocks only run again). What is too much for the memory goes there, too.

    Raises:
        InputError: a name that is no Linear or Conv2d, bits out of range, or activations that are not finite; names the
            layer.
    """
    settings = settings or CalibrationSettings()
    layers = layers_of(model, bits)
    device = next(model.parameters()).device
    calls = [call.to(device) for call in calls]
    blocks = find_blocks(model, calls[0], bits)
    playback = Playback(model, blocks, calls, Outputs(device, folder))
    journal = None if folder is None else BlockJournal(folder)
    found: dict[str, CalibratedLayer] = {}
    for index, block in enumerate(blocks):
        student = copy.deepcopy(model.get_submodule(block.name))
        inputs = {side: BlockInputs(playback, index, side) for side in Side}
        before = None if journal is None else journal.read(index)
        solved = dict(before or {})
        for group in block.groups:
            if group[0] not in solved:
                solved.update(_solve_group(model, student, block, group, calls, inputs, bits, settings))
            _put(student, block, {name: solved[name] for name in group})
            progress(len(found) + len(solved), len(bits))
        if journal is not None and before is None:
            journal.write(index, solved)
        found.update(solved)
        _carry_on(playback, index, student, inputs)
    missing = [name for name in bits if name not in found]
    for name in missing:
        found[name] = weight_only_layer(name, layers[name], bits[name])
    notes = (_note(missing),) if missing else ()
    return Calibration({name: found[name] for name in bits}, notes)


def _note(missing: Sequence[str]) -> str:
    return (
        f"{len(missing)} layers did not run once in the calibration's forward passes and got the best scale of their "
        f"weights alone: {named(list(missing))}"
    )


def _solve_group(
    model: nn.Module,
    student: nn.Module,
    block: Block,
    group: Sequence[str],
    calls: Sequence[Call],
    inputs: Mapping[Side, Sequence[Inputs]],
    bits: Mapping[str, int],
    settings: CalibrationSettings,
) -> dict[str, CalibratedLayer]:
    """Solves layers that share their input; those before them are rounded in `student`."""
    original = model.get_submodule(block.name)
    inner = {name: name[len(block.name) :].lstrip(".") for name in group}
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in group}
    total = MomentSum(layers, settings, len(calls))
    for number, (call, before, after) in enumerate(
        zip(calls, inputs[Side.ORIGINAL], inputs[Side.STUDENT], strict=True)
    ):
        wanted = watched(original, before, inner, block.repeated, outputs=True)
        given = watched(student, after, inner, block.repeated, outputs=False)
        for run, input in enumerate(given[group[0]]):
            total.add_run(number, call.guided, input, [wanted[name][run] for name in group])
    factors: dict[int, tuple[Factored, ...]] = {}  # layers of a group share their moments
    found = {}
    for name, moments in total.moments().items():
        key = id(moments.inputs)
        if key not in factors:
            factors[key] = group_factors(moments.inputs, settings.damping)
        found[name] = calibrated_layer(name, layers[name], moments, factors[key], bits[name], settings)
    return found


def _put(student: nn.Module, block: Block, layers: Mapping[str, CalibratedLayer]) -> None:
    """Rounds layers in the block's copy."""
    for name, made in layers.items():
        layer: Any = student.get_submodule(name[len(block.name) :].lstrip("."))
        layer.weight.copy_(made.weight)
        if layer.bias is not None:
            layer.bias.copy_(made.bias)


class _Enough(Exception):
    """Every layer that is watched has run."""


def watched(
    module: nn.Module, inputs: Inputs, names: Mapping[str, str], repeated: frozenset[str], outputs: bool
) -> dict[str, list[Tensor]]:
    """The inputs or outputs of some layers of a block, one for each time they run; nothing runs after the last."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    to_the_end = not repeated.isdisjoint(names)
    with ExitStack() as stack:
        for name, inner in names.items():
            layer = module.get_submodule(inner)

            def catch(layer: nn.Module, args: Any, output: Any = None, name: str = name) -> None:
                seen[name].append(output if outputs else args[0])
                if all(seen.values()) and not to_the_end:
                    raise _Enough

            register = layer.register_forward_hook if outputs else layer.register_forward_pre_hook
            stack.callback(register(catch).remove)
        with suppress(_Enough):
            inputs.run(module)
    return seen


def _carry_on(playback: Playback, index: int, student: nn.Module, inputs: Mapping[Side, Sequence[Inputs]]) -> None:
    """Keeps what the block gives on both sides, and forgets outputs that no later block needs."""
    modules = {Side.ORIGINAL: playback.model.get_submodule(playback.blocks[index].name), Side.STUDENT: student}
    for side, module in modules.items():
        for call, given in enumerate(inputs[side]):
            playback.keep(index, side, call, given.run(module))
    playback.forget(index)
