"""The losses of both stages, and the block features that Stage I compares (section 4.2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.errors import InputError


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


def noise_prediction(output: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, scheduler: Any) -> Tensor:
    """Stage II's loss: the model's output against the true noise, or v = sqrt(abar) noise - sqrt(1 - abar) z_0.

    Args:
        output, latents, noise: [n, c, h, w].
        timesteps: [n] int64.
        scheduler: its config.prediction_type says what the model predicts; `alphas_cumprod` gives abar.

    Returns:
        [n] float32, the mean squared error of each sample.

    Raises:
        InputError: prediction_type is neither "epsilon" nor "v_prediction".
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return _squared_error(output, noise)
    if kind == "v_prediction":
        abar = scheduler.alphas_cumprod.to(latents.device)[timesteps].reshape(-1, *[1] * (latents.dim() - 1))
        return _squared_error(output, abar.sqrt() * noise - (1 - abar).sqrt() * latents)
    raise InputError(f"scheduler: got prediction_type {kind!r}, wanted epsilon or v_prediction")


class BlockFeatures:
    """Catches the outputs of a UNet's Down and Up blocks as they pass; nothing is copied.

    Use as a context; `take` after each forward.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._caught: list[Tensor] = []
        self._paused = False
        blocks = [*unet.down_blocks, *unet.up_blocks]  # type: ignore[misc]
        self._hooks = [block.register_forward_hook(self._catch) for block in blocks]

    def _catch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._paused:
            return
        # A Down block returns (output, skip connections), an Up block its output.
        self._caught.append(output[0] if isinstance(output, tuple) else output)

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
