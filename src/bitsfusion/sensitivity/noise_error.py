"""The cheap measurement: how far the predicted noise moves when one layer alone is quantized, without training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bitsfusion.data.batches import TrainingData
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import rounded
from bitsfusion.sensitivity.noise import guided_latents, noisy_latents
from bitsfusion.sensitivity.replay import Recording, Replay
from bitsfusion.sensitivity.settings import NoiseErrorSettings


class NoiseError:
    """Measures candidates against the full-precision model's noise on one fixed set of noisy latents.

    What runs before the quantized layer is full precision and computed once, here.
    """

    def __init__(self, pipeline: Any, settings: NoiseErrorSettings, data: TrainingData) -> None:
        self.unet = pipeline_denoiser(pipeline)
        self.settings = settings
        inputs = noisy_latents(pipeline, data, 0, settings.samples, settings.seed, spread=True)
        self.inputs = list(guided_latents(pipeline, inputs, settings.guidance).split(settings.batch_size))
        self.replay = Replay(self.unet) if settings.reuse_activations else None
        self.wanted: list[Tensor] = []
        self.recordings: list[Recording] = []
        with torch.no_grad():
            for part in self.inputs:
                if self.replay is None:
                    self.wanted.append(part.predict(self.unet))
                else:
                    wanted, recording = self.replay.record(lambda part=part: part.predict(self.unet))  # type: ignore[misc]
                    self.wanted.append(wanted)
                    self.recordings.append(recording)

    def measure(self, name: str, bits: int) -> dict[str, float | None]:
        """{mse} of layer `name` alone at `bits`: the mean squared difference of the predicted noise."""
        layer: Any = self.unet.get_submodule(name)
        scale = layer_scale(name, layer.weight, bits, self.settings.scale_init)
        with _weight(layer, rounded(layer.weight, scale, bits)):
            got = self._predict(name)
        errors = torch.stack([(a - b).double().square().mean() for a, b in zip(got, self.wanted, strict=True)])
        sizes = torch.tensor([len(part) for part in got], device=errors.device)
        return {"mse": float((errors * sizes).sum() / sizes.sum())}

    @torch.no_grad()
    def _predict(self, name: str) -> list[Tensor]:
        if self.replay is None:
            return [part.predict(self.unet) for part in self.inputs]
        answers = []
        for part, recording in zip(self.inputs, self.recordings, strict=True):
            with self.replay.replaying(recording, name):
                answers.append(part.predict(self.unet))
        return answers


@contextlib.contextmanager
def _weight(layer: Any, weight: Tensor) -> Iterator[None]:
    """Gives `layer` another weight inside, and its own again afterwards."""
    own = layer.weight.data
    layer.weight.data = weight
    try:
        yield
    finally:
        layer.weight.data = own
