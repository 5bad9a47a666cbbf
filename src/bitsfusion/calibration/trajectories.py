"""What the denoiser is called with while the original draws pictures: both halves of guidance, step after step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trees import Tree, map_tensors
from bitsfusion.errors import InputError
from bitsfusion.progress import Progress, silent

_BATCH = 24
_BATCH_VALUES = 8192  # of the latents drawn together: two of Stable Diffusion's at 256 pixels


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a denoiser; its tensors hold several latents each."""

    args: tuple[Tree, ...]
    kwargs: dict[str, Tree]

    def to(self, device: torch.device | str) -> Call:
        """The same on another device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same with every tensor changed."""
        args, kwargs = map_tensors(self.args, change), map_tensors(self.kwargs, change)
        return Call(args, kwargs)  # type: ignore[arg-type]


def denoise(model: nn.Module, call: Call) -> Tree:
    """The only call of a denoiser in this package."""
    result: Tree = model(*call.args, **call.kwargs)
    return result


@torch.no_grad()
def trajectories(
    pipeline: Any,
    denoiser: nn.Module,
    prompts: Sequence[str],
    settings: CalibrationSettings,
    progress: Progress = silent,
) -> list[Call]:
    """Draws pictures by the pipeline's own code and scheduler, and keeps what the denoiser was called with.

    A picture depends on its prompt and seed alone. Nothing is decoded; the pipeline is as before afterwards.

    Args:
        pipeline: a diffusers pipeline from text to image.
        denoiser: its UNet or transformer.
        prompts: repeated up to `settings.samples`.
        progress: told after every call, with the calls in all.

    Raises:
        InputError: no prompts.
    """
    if not prompts:
        raise InputError("calibration prompts: got none, wanted at least one")
    texts = [prompts[index % len(prompts)] for index in range(settings.samples)]
    shape = _latent_shape(denoiser, settings)
    batch_size = settings.batch_size or max(1, min(_BATCH, _BATCH_VALUES // math.prod(shape)))
    starts = range(0, len(texts), batch_size)
    total = len(starts) * settings.steps
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> None:
        calls.append(Call(args, kwargs).mapped(lambda tensor: tensor.detach().clone()))
        progress(min(len(calls), total), total)

    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for start in starts:
            batch = texts[start : start + batch_size]
            latents = _first_noise(denoiser, settings.seed + start, len(batch), shape)
            _draw(pipeline, batch, latents, settings)
    finally:
        handle.remove()
        pipeline.set_progress_bar_config(**(before or {}))
    return calls


def _latent_shape(denoiser: Any, settings: CalibrationSettings) -> tuple[int, int, int]:
    size = settings.size or denoiser.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return denoiser.config.in_channels, height, width


def _first_noise(denoiser: nn.Module, seed: int, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal, each latent from its own seed, the same on every device."""
    seeds = range(seed, seed + count)
    noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(each)) for each in seeds]
    weight = next(denoiser.parameters())
    return torch.stack(noise).to(weight.device, weight.dtype)


def _draw(pipeline: Any, prompts: list[str], latents: Tensor, settings: CalibrationSettings) -> None:
    known = inspect.signature(pipeline.__call__).parameters
    scale = getattr(pipeline, "vae_scale_factor", 8)
    wanted = {
        "prompt": prompts,
        "latents": latents,
        "height": latents.shape[-2] * scale,
        "width": latents.shape[-1] * scale,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "output_type": "latent",
    }
    pipeline(**{name: value for name, value in wanted.items() if name in known})
