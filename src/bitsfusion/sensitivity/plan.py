"""What a measurement will cost, from a small part of it that is really run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitsfusion.data.batches import TrainingData
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.samplers import build_scheduler
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.noise import guided_latents, noisy_latents
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.paper import PaperMethod
from bitsfusion.sensitivity.settings import FirstOrderOptions, NoiseErrorSettings, PaperSettings, Settings
from bitsfusion.sensitivity.table import MEASURED_BITS, Candidate

SLOW_FORWARD = 0.5
"""Seconds of one latent's forward above which samples are timed one by one instead of in batches."""

TIMED_LAYERS = 3
"""Spread over the model: a layer's place decides how much runs for it again."""


@dataclass(frozen=True)
class Plan:
    """The cost of a measurement.

    Fields:
        candidates: layers times bit widths; `done`: how many of them the file has already.
        forwards: latents through the UNet for one candidate, both of a guided pair counted.
        training_samples: latents through the UNet forward and backward for one candidate.
        shared_seconds: what each worker computes once, for all candidates.
        candidate_seconds: for one candidate.
        assumption: what was timed, and how it was extrapolated; names `timed_layers` where layers were timed alone.
    """

    method: str
    candidates: int
    done: int
    forwards: float
    training_samples: float
    shared_seconds: float
    candidate_seconds: float
    assumption: str
    timed_layers: tuple[str, ...]

    @property
    def left(self) -> int:
        """Candidates still to measure."""
        return self.candidates - self.done

    def hours(self, workers: int = 1) -> float:
        """For what is left, with `workers` as fast as the process that was timed."""
        if not self.left:
            return 0.0
        return (self.shared_seconds + self.candidate_seconds * -(-self.left // workers)) / 3600


def plan(pipeline: Any, settings: Settings, data: TrainingData, candidates: Sequence[Candidate], done: int) -> Plan:
    """Times a few forwards and, where there is training, training steps, and extrapolates.

    Args:
        pipeline, settings, data: as `measure.analyze`.
        candidates: all of them.
        done: rows that are measured already.
    """
    layers = list(dict.fromkeys(candidate.layer for candidate in candidates))
    timed = [layers[round(i * (len(layers) - 1) / (TIMED_LAYERS - 1))] for i in range(TIMED_LAYERS)]
    inputs = noisy_latents(pipeline, data, 0, 1, settings.seed, spread=True)
    with torch.no_grad():
        one = _seconds(lambda: inputs.predict(pipeline_denoiser(pipeline)))
    slow = one > SLOW_FORWARD
    if isinstance(settings, PaperSettings):
        costs = _paper(pipeline, settings, data, timed, slow)
    elif isinstance(settings, NoiseErrorSettings):
        costs = _noise_error(pipeline, settings, data, timed, slow)
    else:
        costs = _jacobian(pipeline, settings, data, layers, len(candidates), slow)
    return Plan(settings.method, len(candidates), done, *costs, tuple(timed))


_Costs = tuple[float, float, float, float, str]  # the fields of Plan from `forwards` to `assumption`


def _paper(pipeline: Any, settings: PaperSettings, data: TrainingData, timed: list[str], slow: bool) -> _Costs:
    batch = 1 if slow else settings.train_batch_size
    images = 1 if slow else min(len(settings.prompts), settings.image_batch_size)
    drawn = {}
    for steps in (1, 3):
        small = settings.model_copy(
            update={
                "iterations": 1,
                "train_batch_size": batch,
                "prompts": settings.prompts[:images],
                "steps": steps,
            }
        )
        method = PaperMethod(pipeline, small, data)
        drawn[_evaluations(pipeline, small)] = _seconds(method.generate)
    training = [_seconds(lambda name=name: method.train_alone(name, 2)) for name in timed]  # type: ignore[misc]
    (few, short), (many, long) = sorted(drawn.items())
    evaluation = max(0.0, long - short) / (many - few)
    rest = max(0.0, short - few * evaluation)
    evaluations = _evaluations(pipeline, settings)
    prompts = len(settings.prompts)
    drawing = prompts / images * (rest + evaluations * evaluation)
    step = sum(training) / len(training) * settings.train_batch_size / batch
    forwards = prompts * evaluations * (2 if settings.guidance > 1 else 1)
    teacher = settings.iterations * step / 3
    return (
        forwards,
        settings.iterations * settings.train_batch_size,
        drawing + teacher,
        drawing + settings.iterations * step,
        f"timed: a training step of {batch} with {TIMED_LAYERS} layers in turn, and {images} images of {few} "
        f"and {many} UNet evaluations; taken to grow in proportion to training samples, images and evaluations",
    )


def _noise_error(
    pipeline: Any, settings: NoiseErrorSettings, data: TrainingData, timed: list[str], slow: bool
) -> _Costs:
    samples = 1 if slow else min(settings.samples, settings.batch_size)
    started = time.perf_counter()
    method = NoiseError(pipeline, settings.model_copy(update={"samples": samples}), data)
    shared = time.perf_counter() - started
    each = [_seconds(lambda name=name: method.measure(name, 2)) for name in timed]  # type: ignore[misc]
    scale = settings.samples / samples
    return (
        settings.samples * (2 if settings.guidance > 1 else 1),
        0,
        shared * scale,
        sum(each) / len(each) * scale,
        f"timed: {samples} noisy latents with {TIMED_LAYERS} layers in turn; taken to grow in proportion to latents",
    )


def _jacobian(
    pipeline: Any, settings: FirstOrderOptions, data: TrainingData, layers: list[str], total: int, slow: bool
) -> _Costs:
    samples = 1 if slow else min(settings.samples, settings.batch_size)
    method = Jacobian(pipeline, settings.model_copy(update={"samples": samples}), data)
    seconds = _seconds(lambda: method.errors(layers)) * settings.samples / samples
    guided = guided_latents(pipeline, noisy_latents(pipeline, data, 0, 1, 0, spread=True), settings.guidance)
    forwards = settings.samples * guided.forwards
    return (
        forwards * len(MEASURED_BITS) / total,  # each layer once more, for every bit width
        forwards / total,
        0.0,
        seconds / total,
        f"timed: {samples} noisy latents for all candidates at once; taken to grow in proportion to latents",
    )


def _evaluations(pipeline: Any, settings: PaperSettings) -> int:
    """How often a sampler asks the UNet for one image (PNDM: once more than it has steps)."""
    scheduler = build_scheduler(settings.sampler, pipeline.scheduler.config)
    scheduler.set_timesteps(settings.steps)
    return len(scheduler.timesteps)


def _seconds(work: Callable[[], object]) -> float:
    """The seconds that the second of two calls takes; the first one warms up."""
    work()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
