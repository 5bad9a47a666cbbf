"""The teacher's own trajectories as training data, for models that were distilled to few steps (LCM, Turbo, Lightning).

Such a model is only ever asked at the few times of its own scheduler, about the latents that its own steps lead to;
images noised at random times are not what it sees. Differs from the paper, whose model takes 50 steps.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import draw
from bitsfusion.data.batches import Batch
from bitsfusion.devices import device_of
from bitsfusion.diffusion.conditioning import Conditioner, conditioner_of
from bitsfusion.diffusion.samples import GuidedSamples, NoisySamples
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.progress import Progress, silent

Keep = Callable[[Tensor, Tensor], None]


class Trajectories:
    """What the teacher is given while it draws each prompt; see `TrainingData`. All of it is computed here, at once.

    Args:
        pipeline: with the teacher, its text encoders and its scheduler, on the device to compute on.
        teacher: the full-precision denoiser in the pipeline.
        prompts: repeated up to `samples`.
        samples: trajectories; one has as many latents as the scheduler asks for.
        steps: as given to the pipeline's `num_inference_steps`.
        guidance: classifier-free guidance; at 1 and below there is none, as few-step models are drawn.
        seed: trajectory i has seed + i; also of the order.
        batch_size: drawn together; changes the rounding only.
        side: height and width of the latents; None: the model's own.
        progress: is told the trajectories done and those in all.

    Raises:
        InputError: no prompts, or a pipeline that draws from more than a prompt.
    """

    def __init__(
        self,
        pipeline: Any,
        teacher: Any,
        prompts: Sequence[str],
        *,
        samples: int,
        steps: int,
        guidance: float = 1.0,
        seed: int = 0,
        batch_size: int = 8,
        side: int | None = None,
        progress: Progress = silent,
    ) -> None:
        if not prompts:
            raise InputError("trajectories: got no prompts, wanted at least one")
        config = dict(teacher.config)
        conditioner = conditioner_of(pipeline, teacher)
        side = side or denoiser_of(teacher).latent_size(config)
        scheduler = prepared_scheduler(pipeline, teacher, prompts[0], steps, guidance, side)
        texts = [prompts[index % len(prompts)] for index in range(samples)]
        self._names = tuple(dict.fromkeys(texts))
        known = {text: row for row, text in enumerate(self._names)}
        self._prompts = conditioner.rows(self._names)
        latents: list[Tensor] = []
        times: list[Tensor] = []
        captions: list[int] = []
        for start in range(0, samples, batch_size):
            part = texts[start : start + batch_size]

            def keep(given: Tensor, asked: Tensor, part: list[str] = part) -> None:
                latents.append(given.float().cpu())
                times.append(asked.cpu())
                captions.extend(known[text] for text in part)

            seeds = range(seed + start, seed + start + len(part))
            follow(scheduler, teacher, conditioner, part, seeds, side, guidance, keep)
            progress(start + len(part), samples)
        self._latents, self._times, self._captions = torch.cat(latents), torch.cat(times), torch.tensor(captions)
        self._seed = seed
        settings = {"trajectories": samples, "steps": steps, "guidance": guidance, "seed": seed, "side": side}
        self._fingerprint = sha256_json({**settings, "prompts": list(prompts), "class": type(teacher).__name__})

    @property
    def fingerprint(self) -> str:
        """A hash of what the trajectories follow from beside the teacher's weights."""
        return self._fingerprint

    @property
    def times(self) -> list[float]:
        """The different time steps, in the scheduler's order."""
        return list(dict.fromkeys(self._times.tolist()))

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        """`size` latents drawn from all of them with replacement; all processes' side by side are one process's."""
        rng = np.random.default_rng([self._seed, 0, step])
        drawn = rng.integers(len(self._latents), size=world_size * size)
        chosen = torch.from_numpy(drawn[rank * size : (rank + 1) * size])
        rows = self._captions[chosen]
        prompts = {name: tensor[rows] for name, tensor in self._prompts.items()}
        names = tuple(self._names[row] for row in rows.tolist())
        return Batch(self._latents[chosen], prompts, names, None, self._times[chosen])


def prepared_scheduler(pipeline: Any, teacher: Any, prompt: str, steps: int, guidance: float, side: int) -> Any:
    """A copy of the pipeline's scheduler as the pipeline itself prepares it, before its first step.

    Pipelines tell it what they know of the picture (a flow's shift) or of the distillation (LCM), each its own way: so
    one picture is drawn, and the scheduler looked at.
    """
    compression = denoiser_of(teacher).compression
    settings = CalibrationSettings(samples=1, steps=steps, guidance=guidance, size=side * compression)
    with _before_first_step(pipeline.scheduler) as found:
        draw(pipeline, teacher, [prompt], settings)
    return found[0]


@torch.no_grad()
def follow(
    scheduler: Any,
    teacher: Any,
    conditioner: Conditioner,
    texts: Sequence[str],
    seeds: Sequence[int],
    side: int,
    guidance: float,
    keep: Keep,
) -> Tensor:
    """Draws latents from noise to picture, and tells what the teacher was given at each step.

    Args:
        scheduler: see `prepared_scheduler`; is not changed.
        texts, seeds: n of them.
        keep: ([n, c, h, w] as the denoiser is given them, [n] time steps).

    Returns:
        the last latents, [n, c, h, w] float32.
    """
    scheduler = copy.deepcopy(scheduler)
    family, count = denoiser_of(teacher), len(texts)
    device, dtype = device_of(teacher) or torch.device("cpu"), next(teacher.parameters()).dtype
    example, _ = family.example(dict(teacher.config), 1, side, 1)
    shape = tuple(example.shape[1:])
    conditioning = conditioner.encode(conditioner.rows(texts), shape[-2:]).to(device, dtype)
    null = conditioner.null(count, shape[-2:]).to(device, dtype) if guidance > 1 else conditioning
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    known = inspect.signature(scheduler.step).parameters
    random = {"generator": generators} if "generator" in known else {}
    latents = torch.stack([torch.randn(*shape, generator=generator) for generator in generators]).to(device)
    latents = latents * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for time in scheduler.timesteps:
        given = latents if not hasattr(scheduler, "scale_model_input") else scheduler.scale_model_input(latents, time)
        times = time.to(device).expand(count)
        asked = GuidedSamples(NoisySamples(given.to(dtype), times, conditioning), null, guidance)
        keep(given, times)
        latents = scheduler.step(asked.predict(teacher).float(), time, latents, **random).prev_sample
    return latents


@contextmanager
def _before_first_step(scheduler: Any) -> Iterator[list[Any]]:
    """Copies of a scheduler as it is before its first step inside."""
    found: list[Any] = []
    own = scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        if not found:
            del scheduler.step
            found.append(copy.deepcopy(scheduler))
            scheduler.step = step
        return own(*args, **kwargs)

    scheduler.step = step
    try:
        yield found
    finally:
        del scheduler.step
