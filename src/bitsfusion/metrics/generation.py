"""Images from a pipeline, so that two models can be compared on the same prompts and seeds."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from bitsfusion.diffusion.samplers import OWN, Sampler, build_scheduler
from bitsfusion.errors import InputError
from bitsfusion.io.files import atomic_path


def generate_images(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 50,
    guidance: float = 7.5,
    sampler: str = Sampler.PNDM,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """One image a prompt, by the pipeline's own code: [n, h, w, 3] uint8.

    An image depends on its prompt and seed alone, not on its batch or device, up to the rounding of float
    arithmetic: its first noise comes from a CPU generator of its own. The pipeline is as before afterwards.
    The safety checker is left out: a blackened image has no score.

    Args:
        sampler: any scheduler of diffusers by name, or `own` for the pipeline's; see `build_scheduler`.
        guidance: classifier-free guidance scale; at 1 and below there is none.
        progress: called with the images done and the images in all, after each batch.

    Raises:
        InputError: not one seed a prompt, an unknown sampler, or fewer than one step.
    """
    if len(prompts) != len(seeds):
        raise InputError(f"generate: got {len(prompts)} prompts and {len(seeds)} seeds, wanted one seed a prompt")
    if steps < 1 or batch_size < 1:
        raise InputError(f"generate: got {steps} steps and batch size {batch_size}, wanted at least 1 of each")
    images = []
    with torch.no_grad(), _prepared(pipeline, _built(sampler, pipeline.scheduler)):
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            output = pipeline(
                prompt=list(prompts[batch]),
                latents=initial_latents(pipeline, seeds[batch]),
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="np",
            )
            images.append((output.images * 255).round().astype(np.uint8))
            if progress is not None:
                progress(min(start + batch_size, len(prompts)), len(prompts))
    if not images:
        size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        return np.zeros((0, size, size, 3), dtype=np.uint8)
    return np.concatenate(images)


def write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Writes one image ([h, w, 3] uint8), whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def initial_latents(pipeline: StableDiffusionPipeline, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal latents [n, c, h, w], each from its own seed, the same on every device (drawn in float32)."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (pipeline.unet.config.in_channels, height, width)
    latents = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.stack(latents).to(pipeline.device, pipeline.unet.dtype)


def _built(sampler: str, own: Any) -> Any:
    """A scheduler of the run's own, with which the pipeline's is not changed."""
    return copy.deepcopy(own) if sampler == OWN else build_scheduler(sampler, own.config)


@contextlib.contextmanager
def _prepared(pipeline: StableDiffusionPipeline, scheduler: Any) -> Iterator[None]:
    """The pipeline with another scheduler, no safety checker and no progress bar, as it was again afterwards."""
    before = (pipeline.scheduler, getattr(pipeline, "_progress_bar_config", None))
    checker = getattr(pipeline, "safety_checker", None)  # SDXL's pipelines know none
    pipeline.scheduler = scheduler
    if checker is not None:
        pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler, progress = before
        if checker is not None:
            pipeline.safety_checker = checker
        pipeline.set_progress_bar_config(**(progress or {}))
