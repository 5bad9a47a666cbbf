"""Images from a pipeline, so that two models can be compared on the same prompts and seeds."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from PIL import Image

from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.architectures.unet import UNET
from bitsfusion.diffusion.conditioning.states import sequence_length
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.process import is_flow
from bitsfusion.diffusion.samplers import OWN, Sampler, build_scheduler, check_steps
from bitsfusion.diffusion.samples import seeded_noise
from bitsfusion.errors import InputError
from bitsfusion.io.atomic import atomic_path
from bitsfusion.pipelines.load import check_draws_from_text
from bitsfusion.progress import Progress, silent

_DISTILLED = {"original_inference_steps"}
"""What pipelines of consistency models pass to their scheduler beside the number of steps."""


def generate_images(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 50,
    guidance: float = 7.5,
    sampler: str = Sampler.PNDM,
    batch_size: int = 16,
    size: int | None = None,
    progress: Progress = silent,
) -> npt.NDArray[np.uint8]:
    """One image a prompt, by the pipeline's own code: [n, h, w, 3] uint8.

    An image depends on its prompt and seed alone, not on its batch or device, up to the rounding of float
    arithmetic: its first noise comes from a CPU generator of its own. The pipeline is as before afterwards.
    The safety checker is left out: a blackened image has no score.

    Args:
        sampler: any scheduler of diffusers by name, or `own` for the pipeline's; see `build_scheduler`.
        guidance: classifier-free guidance scale; at 1 and below there is none.
        size: pixels of a side; None for the model's own. A multiple of the VAE's factor, and of transformers' patches.
        progress: called with the images done and the images in all, after each batch.

    Raises:
        InputError: not one seed a prompt, an unknown sampler, a number of steps that it does not have, or a pipeline
            that draws from more than a prompt.
    """
    if len(prompts) != len(seeds):
        raise InputError(f"generate: got {len(prompts)} prompts and {len(seeds)} seeds, wanted one seed a prompt")
    if steps < 1 or batch_size < 1:
        raise InputError(f"generate: got {steps} steps and batch size {batch_size}, wanted at least 1 of each")
    check_draws_from_text(pipeline)
    scheduler = _built(sampler, pipeline, steps)
    images = []
    with torch.no_grad(), _prepared(pipeline, scheduler):
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            output = pipeline(
                prompt=list(prompts[batch]),
                num_inference_steps=steps,
                output_type="np",
                **call_options(pipeline, seeds[batch], steps, guidance, size),
            )
            images.append((output.images * 255).round().astype(np.uint8))
            progress(min(start + batch_size, len(prompts)), len(prompts))
    if not images:
        model = pipeline_denoiser(pipeline)
        side = model.config.get("sample_size") or 0
        height, width = (each * pipeline.vae_scale_factor for each in ((side, side) if isinstance(side, int) else side))
        return np.zeros((0, height, width, 3), dtype=np.uint8)
    return np.concatenate(images)


def call_options(
    pipeline: Any, seeds: Sequence[int], steps: int, guidance: float, size: int | None = None
) -> dict[str, Any]:
    """What a pipeline's call is given beside prompts and steps: the first noise, guidance, and limits of its own.

    Transformers' pipelines pack their latents, so that they draw the noise, each from its own CPU generator. Where the
    class says more than the model or its tokenizer takes, it is told what they take.
    """
    model = pipeline_denoiser(pipeline)
    if denoiser_of(model) is UNET:
        return {"latents": initial_latents(pipeline, seeds, size), "guidance_scale": guidance}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    options: dict[str, Any] = {"generator": generators, "guidance_scale": guidance}
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if "max_sequence_length" in parameters:
        options["max_sequence_length"] = sequence_length(pipeline)
    if "use_resolution_binning" in parameters:  # to the sizes of the published model
        options["use_resolution_binning"] = False
    true_guidance = "true_cfg_scale" in parameters and parameters["true_cfg_scale"].default > 1  # Qwen-Image
    if true_guidance and not model.config.get("guidance_embeds"):
        options |= {"true_cfg_scale": guidance, "negative_prompt": [" "] * len(seeds)}
        del options["guidance_scale"]
    if "intermediate_timesteps" in parameters and steps != 2:  # Sana Sprint, whose default is of two steps
        options["intermediate_timesteps"] = None
    places = model.config.get("pos_embed_max_size")
    if size is not None:
        options |= {"height": size, "width": size}
        if "max_area" in parameters:  # FLUX.1 Kontext, which would make the picture as large as this
            options["max_area"] = size * size
    elif places and isinstance(parameters["height"].default, int):
        side = math.isqrt(places) * model.config.patch_size * pipeline.vae_scale_factor
        if side < parameters["height"].default:
            options |= {"height": side, "width": side}
    return options


def write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Writes one image ([h, w, 3] uint8), whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def initial_latents(pipeline: Any, seeds: Sequence[int], size: int | None = None) -> torch.Tensor:
    """Standard normal latents [n, c, h, w], each from its own seed, the same on every device (drawn in float32).

    Args:
        size: pixels of a side; None for the size that the model was made for.
    """
    model = pipeline_denoiser(pipeline)
    own = model.config.sample_size if size is None else size // pipeline.vae_scale_factor
    height, width = (own, own) if isinstance(own, int) else own
    return seeded_noise((model.config.in_channels, height, width), seeds).to(pipeline.device, model.dtype)


def _built(sampler: str, pipeline: DiffusionPipeline, steps: int) -> SchedulerMixin:
    """A scheduler of the run's own that can make `steps` steps, with which the pipeline's is not changed."""
    own = pipeline.scheduler
    scheduler = copy.deepcopy(own) if sampler == OWN else build_scheduler(sampler, own.config)
    asked = inspect.signature(type(pipeline).__call__).parameters.keys() & _DISTILLED
    if lacking := asked - inspect.signature(scheduler.set_timesteps).parameters.keys():
        raise InputError(
            f"sampler {sampler}: got {type(scheduler).__name__} without {', '.join(lacking)}, wanted one that "
            f"{type(pipeline).__name__} can ask for it: {OWN}, lcm or tcd"
        )
    if not is_flow(own.config):  # whose steps may depend on the size of the picture, which the pipeline passes
        check_steps(copy.deepcopy(scheduler), sampler, steps)
    return scheduler


@contextlib.contextmanager
def _prepared(pipeline: DiffusionPipeline, scheduler: SchedulerMixin) -> Iterator[None]:
    """The pipeline with another scheduler, no safety checker and no progress bar, as it was again afterwards."""
    names = ["scheduler", *(["safety_checker"] if hasattr(pipeline, "safety_checker") else [])]
    before = {name: getattr(pipeline, name) for name in names}
    progress = getattr(pipeline, "_progress_bar_config", None)
    for name in names:
        setattr(pipeline, name, scheduler if name == "scheduler" else None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(pipeline, name, value)
        pipeline.set_progress_bar_config(**(progress or {}))
