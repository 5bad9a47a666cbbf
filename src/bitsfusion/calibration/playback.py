"""A block's inputs, found by playing back the outputs of the blocks before it: only what lies between blocks runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.calibration.blocks import Block, forward_replaced
from bitsfusion.calibration.trajectories import Call
from bitsfusion.calibration.trees import Tree, is_spread, load_tree, map_tensors, save_tree, tensors_of
from bitsfusion.diffusion.denoise import denoise_as

MEMORY_BYTES = 1 << 29
"""Bytes of blocks' outputs, or of one block's inputs, that are held in memory."""


class Side(str, Enum):
    """Whose activations."""

    ORIGINAL = "original"
    STUDENT = "student"


class Outputs:
    """What blocks gave, by side and call: in memory, and in a folder what is too much for it.

    Args:
        device: on which they are wanted.
        folder: None keeps all of them in memory, on that device.
        memory_bytes: of outputs kept in memory where there is a folder.
    """

    def __init__(self, device: torch.device, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        self._device, self._folder, self._left = device, folder, memory_bytes
        self._kept: dict[tuple[str, Side, int], Tree] = {}

    def put(self, block: str, side: Side, call: int, value: Tree) -> None:
        """Keeps one output, in the place of an older one."""
        self._drop(block, side, call)
        size = held_bytes(value)
        if self._folder is None or size <= self._left:
            self._left -= size
            self._kept[block, side, call] = map_tensors(value, _copied)
        else:
            save_tree(self._file(block, side, call), value)

    def get(self, block: str, side: Side, call: int) -> Tree:
        """One output, which may be changed."""
        if (block, side, call) in self._kept:
            return map_tensors(self._kept[block, side, call], _copied)
        return load_tree(self._file(block, side, call), self._device)

    def bury(self, block: str, side: Side, call: int) -> None:
        """Keeps the shapes of an output alone, if it is there."""
        if (block, side, call) in self._kept or (self._folder and self._file(block, side, call).is_file()):
            self.put(block, side, call, dead(self.get(block, side, call)))

    def _drop(self, block: str, side: Side, call: int) -> None:
        old = self._kept.pop((block, side, call), None)
        if old is not None:
            self._left += held_bytes(old)
        elif self._folder is not None:
            self._file(block, side, call).unlink(missing_ok=True)

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
        copied: Any = map_tensors((self.args, self.kwargs), torch.clone)
        args, kwargs = copied
        result: Tree = module(*args, **kwargs)
        return result


class BlockInputs(Sequence[Inputs]):
    """One block's inputs on one side, a call each: held in memory, or found anew each time where they are too large."""

    def __init__(self, playback: Playback, index: int, side: Side) -> None:
        self._playback, self._index, self._side = playback, index, side
        first = self._find(0)
        size = held_bytes((first.args, first.kwargs)) * len(playback.calls)
        self._held: list[Inputs] | None = None
        if size <= MEMORY_BYTES // 2:
            self._held = [first, *(self._find(call) for call in range(1, len(playback.calls)))]

    def __len__(self) -> int:
        return len(self._playback.calls)

    def __getitem__(self, call: Any) -> Any:
        if call >= len(self):
            raise IndexError(call)
        return self._find(call) if self._held is None else self._held[call]

    def _find(self, call: int) -> Inputs:
        return self._playback.inputs(self._index, self._side, call)


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
        """The inputs of block number `index` in one call; nothing runs but what lies between blocks."""
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
                denoise_as(self.model, self.calls[call].args, self.calls[call].kwargs)
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


def held_bytes(tree: Tree) -> int:
    """What its tensors take in memory."""
    return sum(0 if is_spread(tensor) else tensor.numel() * tensor.element_size() for tensor in tensors_of(tree))


def _copied(tensor: Tensor) -> Tensor:
    return tensor if is_spread(tensor) else tensor.detach().clone()


def dead(value: Tree) -> Tree:
    """The same shapes, filled with NaN and without memory: whoever looks at them is found out."""

    def empty(tensor: Tensor) -> Tensor:
        fill = float("nan") if tensor.is_floating_point() else 0
        return torch.full((1,) * tensor.dim(), fill, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)

    return map_tensors(value, empty)
