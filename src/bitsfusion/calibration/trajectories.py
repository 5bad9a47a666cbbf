"""What the denoiser is called with while the original draws pictures: both halves of guidance, step after step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.architectures.unet import UNET
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trees import Tree, map_tensors, tensors_of
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.samples import seeded_noise
from bitsfusion.errors import InputError
from bitsfusion.pipelines.generation import call_options
from bitsfusion.progress import Progress, silent

_BATCH = 24
_UNMIXED = 1e-3  # of the energy, left by least squares where a step is no mixture of the halves
_BATCH_VALUES = 8192  # of the latents drawn together: two of Stable Diffusion's at 256 pixels


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a denoiser; its tensors hold several latents each.

    Fields:
        guided: (a, b) where the sampler steps by a times the prediction of the first half of the latents plus b times
            that of the second, and a + b = 1; None without guidance.
    """

    args: tuple[Tree, ...]
    kwargs: dict[str, Tree]
    guided: tuple[float, float] | None = None

    def to(self, device: torch.device | str) -> Call:
        """The same on another device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same with every tensor changed."""
        args, kwargs = map_tensors(self.args, change), map_tensors(self.kwargs, change)
        return Call(args, kwargs, self.guided)  # type: ignore[arg-type]


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
    _, batch_size = _batches(pipeline, denoiser, settings)
    total = -(-settings.samples // batch_size) * settings.steps
    calls: list[Call] = []
    predicted: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tree, ...], kwargs: dict[str, Tree], output: Tree) -> None:
        calls.append(Call(args, kwargs).mapped(lambda tensor: tensor.detach().clone()))
        predicted[:] = tensors_of(output)[:1]
        progress(min(len(calls), total), total)

    def stepped(used: Tensor) -> None:
        if calls and predicted:
            calls[-1] = replace(calls[-1], guided=_mixture(predicted.pop(), used))

    handle = denoiser.register_forward_hook(keep, with_kwargs=True)
    try:
        with _watched_steps(pipeline.scheduler, stepped):
            draw(pipeline, denoiser, prompts, settings)
    finally:
        handle.remove()
    return calls


@torch.no_grad()
def draw(
    pipeline: Any, denoiser: nn.Module, prompts: Sequence[str], settings: CalibrationSettings, decoded: bool = False
) -> None:
    """Draws the calibration's pictures, for those who watch; arguments as `trajectories`.

    Args:
        decoded: run the VAE, too.

    Raises:
        InputError: no prompts.
    """
    if not prompts:
        raise InputError("calibration prompts: got none, wanted at least one")
    texts = [prompts[index % len(prompts)] for index in range(settings.samples)]
    shape, batch_size = _batches(pipeline, denoiser, settings)
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        for start in range(0, len(texts), batch_size):
            batch, seed = texts[start : start + batch_size], settings.seed + start
            _draw(pipeline, batch, range(seed, seed + len(batch)), shape, settings, decoded)
    finally:
        pipeline.set_progress_bar_config(**(before or {}))


def _batches(pipeline: Any, denoiser: nn.Module, settings: CalibrationSettings) -> tuple[tuple[int, int, int], int]:
    """The latents' shape, and how many are drawn together."""
    shape = _latent_shape(pipeline, denoiser, settings)
    return shape, settings.batch_size or max(1, min(_BATCH, _BATCH_VALUES // math.prod(shape)))


@contextmanager
def _watched_steps(scheduler: Any, watch: Callable[[Tensor], None]) -> Iterator[None]:
    """Tells what each step of the scheduler goes by."""
    own = scheduler.step

    def step(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        watch(model_output)
        return own(model_output, *args, **kwargs)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step


def _mixture(predicted: Tensor, used: Tensor) -> tuple[float, float] | None:
    """How a sampler's step weighs the halves, by least squares, made to sum to 1; None if it is no mixture of them."""
    if len(predicted) != 2 * len(used):
        return None
    halves = predicted[:, : used.shape[1]].unflatten(0, (2, -1)).flatten(1).cpu().double()  # without learned variances
    if halves.shape[1] != used.numel():
        return None
    wanted = used.flatten().cpu().double()
    weights = torch.linalg.lstsq(halves.t(), wanted[:, None]).solution[:, 0]
    left = (weights @ halves - wanted).square().sum() / wanted.square().sum()
    total = weights.sum()
    if not left < _UNMIXED or total.abs() < _UNMIXED:
        return None
    first, second = (weights / total).tolist()
    return first, second


def _latent_shape(pipeline: Any, denoiser: Any, settings: CalibrationSettings) -> tuple[int, int, int]:
    own = denoiser.config.get("sample_size") or getattr(pipeline, "default_sample_size", 128)
    size = settings.size or own
    height, width = (size, size) if isinstance(size, int) else size
    return denoiser.config.in_channels, height, width


def _draw(
    pipeline: Any,
    prompts: list[str],
    seeds: range,
    shape: tuple[int, ...],
    settings: CalibrationSettings,
    decoded: bool,
) -> None:
    denoiser = pipeline_denoiser(pipeline)
    options = {
        "prompt": prompts,
        "num_inference_steps": settings.steps,
        "output_type": "pt" if decoded else "latent",
        **call_options(pipeline, seeds, settings.steps, settings.guidance),
    }
    sides = dict(zip(("height", "width"), (side * pipeline.vae_scale_factor for side in shape[-2:]), strict=True))
    if denoiser_of(denoiser) is UNET:
        weight = next(denoiser.parameters())
        options["latents"] = seeded_noise(shape, seeds).to(weight.device, weight.dtype)
        options |= sides
    elif settings.size is not None:
        options |= sides | {"max_area": math.prod(sides.values())}
    known = inspect.signature(pipeline.__call__).parameters
    pipeline(**{name: value for name, value in options.items() if name in known})
