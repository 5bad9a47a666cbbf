"""A block's inputs, found by playing back the outputs of the blocks before it: only what lies between blocks runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor, nn

from bitsfusion.calibration.blocks import Block, forward_replaced
from bitsfusion.calibration.trajectories import Call, denoise
from bitsfusion.calibration.trees import Tree, is_spread, load_tree, map_tensors, save_tree


class Side(str, Enum):
    """Whose activations."""

    ORIGINAL = "original"
    STUDENT = "student"


class Outputs:
    """What blocks gave, by side and call: in memory, or in a folder.

    Args:
        device: on which they are wanted.
        folder: None keeps them in memory, on that device.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self._device, self._folder = device, folder
        self._kept: dict[tuple[str, Side, int], Tree] = {}

    def put(self, block: str, side: Side, call: int, value: Tree) -> None:
        """Keeps one output, in the place of an older one."""
        if self._folder is None:
            self._kept[block, side, call] = map_tensors(value, _copied)
        else:
            save_tree(self._file(block, side, call), value)

    def get(self, block: str, side: Side, call: int) -> Tree:
        """One output, which may be changed."""
        if self._folder is None:
            return map_tensors(self._kept[block, side, call], _copied)
        return load_tree(self._file(block, side, call), self._device)

    def bury(self, block: str, side: Side, call: int) -> None:
        """Keeps the shapes of an output alone, if it is there."""
        there = (block, side, call) in self._kept if self._folder is None else self._file(block, side, call).is_file()
        if there:
            self.put(block, side, call, dead(self.get(block, side, call)))

    def _file(self, block: str, side: Side, call: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{block or 'model'}-{side.value}-{call:05d}.safetensors"


class _Reached(Exception):
    """The forward pass has come to the block whose inputs are wanted."""


@dataclass(frozen=True)
class Inputs:
    """What a block was called with."""

    args: tuple[Tree, ...]
    kwargs: dict[str, Tree]

    def run(self, module: nn.Module) -> Tree:
        """Calls it once more, on copies: a module may write to its inputs."""
        args, kwargs = map_tensors((self.args, self.kwargs), torch.clone)  # type: ignore[misc]
        result: Tree = module(*args, **kwargs)
        return result


@dataclass(frozen=True)
class Playback:
    """Finds the inputs of blocks.

    Fields:
        model: whose parts outside of blocks run; both sides share them.
        blocks: all, in order.
        calls: of the denoiser.
        outputs: of the blocks before the one that is asked for.
    """

    model: nn.Module
    blocks: Sequence[Block]
    calls: Sequence[Call]
    outputs: Outputs

    def inputs(self, index: int, side: Side, call: int) -> Inputs:
        """Of block number `index` in one call; nothing runs but what lies between blocks."""
        found: list[Inputs] = []

        def catch(*args: Tree, **kwargs: Tree) -> Tree:
            found.append(Inputs(args, kwargs))
            raise _Reached

        with ExitStack() as stack:
            for block in self.blocks[:index]:
                played = self._player(block, side, call)
                stack.enter_context(forward_replaced(self.model.get_submodule(block.name), played))
            stack.enter_context(forward_replaced(self.model.get_submodule(self.blocks[index].name), catch))
            with suppress(_Reached):
                denoise(self.model, self.calls[call])
        return found[0]

    def _player(self, block: Block, side: Side, call: int) -> Callable[..., Tree]:
        return lambda *args, **kwargs: self.outputs.get(block.name, side, call)

    def keep(self, index: int, side: Side, call: int, value: Tree) -> None:
        """Notes what block number `index` gave in a call; only its shapes if no later block looks at it."""
        name = self.blocks[index].name
        self.outputs.put(name, side, call, value if self._last_use(name) > index else dead(value))

    def forget(self, index: int) -> None:
        """Once block number `index` is done: the outputs that were for its inputs and no later ones."""
        for block in self.blocks[:index]:
            if self._last_use(block.name) == index:
                for side in Side:
                    for call in range(len(self.calls)):
                        self.outputs.bury(block.name, side, call)

    def _last_use(self, name: str) -> int:
        return max((place for place, later in enumerate(self.blocks) if name in later.sources), default=-1)


def _copied(tensor: Tensor) -> Tensor:
    return tensor if is_spread(tensor) else tensor.detach().clone()


def dead(value: Tree) -> Tree:
    """The same shapes, filled with NaN and without memory: whoever looks at them is found out."""

    def empty(tensor: Tensor) -> Tensor:
        fill = float("nan") if tensor.is_floating_point() else 0
        return torch.full((1,) * tensor.dim(), fill, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)

    return map_tensors(value, empty)
