"""The losses of both stages, and the block features that Stage I compares (section 4.2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.architectures.registry import denoiser_of


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample: [n] float32."""
    return functional.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(1)


def noise_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """L_noise (Eq. 6): how far the student's output is from the teacher's for the same z_t, t and c.

    CFG-aware because the caller gives both the null prompt for the same tenth of the samples. Works on
    whatever the model predicts (noise or v).

    Args:
        student, teacher: [n, c, h, w].

    Returns:
        [n] float32, the mean squared error of each sample.
    """
    return _squared_error(student, teacher)


def feature_distillation(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """L_feat (Eq. 7): how far the outputs of the Down and Up blocks are from the teacher's.

    Differs from the paper: it leaves the norm open; here it is the mean squared error of each block, averaged
    over blocks, so that lambda does not depend on the model's size.

    Args:
        student, teacher: one tensor a block, equal shapes, from `BlockFeatures`.

    Returns:
        A scalar, float32.
    """
    errors = [functional.mse_loss(ours.float(), theirs.float()) for ours, theirs in zip(student, teacher, strict=True)]
    return torch.stack(errors).mean()


def noise_prediction(output: Tensor, target: Tensor) -> Tensor:
    """Stage II's loss: the model's output against what a perfect model predicts, the true noise (or v, or velocity).

    Args:
        output, target: [n, c, h, w]; see `Process.target`.

    Returns:
        [n] float32, the mean squared error of each sample.
    """
    return _squared_error(output, target)


class BlockFeatures:
    """Catches the outputs of a denoiser's feature blocks as they pass (a UNet's Down and Up blocks); nothing is copied.

    Use as a context; `take` after each forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self._caught: list[Tensor] = []
        self._paused = False
        self._family = denoiser_of(model)
        self._hooks = [block.register_forward_hook(self._catch) for block in self._family.feature_blocks(model)]

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._paused:
            return
        self._caught.extend(self._family.features(output))

    def take(self) -> list[Tensor]:
        """The features of the last forward, Down blocks first; forgets them."""
        caught, self._caught = self._caught, []
        return caught

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Forwards inside are let pass."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __enter__(self) -> BlockFeatures:
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._caught.clear()
