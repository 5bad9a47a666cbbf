"""The cheap measurement: how far the predicted noise moves when one layer alone is quantized, without training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from bitsfusion.data.batches import TrainingData
from bitsfusion.errors import InputError
from bitsfusion.numerics import dequantize, initial_scale, quantize
from bitsfusion.sensitivity.settings import NoiseErrorSettings


@dataclass(frozen=True)
class NoisyLatents:
    """What a UNet is asked about: latents z_t [n, c, h, w], time steps t [n] int64, text states [n, tokens, d]."""

    latents: Tensor
    timesteps: Tensor
    context: Tensor

    def split(self, size: int) -> Iterator[NoisyLatents]:
        """Parts of at most `size` samples."""
        parts = zip(self.latents.split(size), self.timesteps.split(size), self.context.split(size), strict=True)
        return (NoisyLatents(*part) for part in parts)

    def predict(self, unet: Any) -> Tensor:
        """The UNet's output for these, [n, c, h, w]; with gradients unless switched off outside."""
        output: Tensor = unet(self.latents, self.timesteps, encoder_hidden_states=self.context).sample
        return output


@torch.no_grad()
def noisy_latents(pipeline: Any, data: TrainingData, step: int, size: int, seed: int, spread: bool) -> NoisyLatents:
    """`size` samples of batch `step` of `data`, noised by the pipeline's schedule; a function of the arguments alone.

    Args:
        spread: time steps evenly over the whole schedule, instead of uniformly random ones.
    """
    batch = data.batch(step=step, rank=0, world_size=1, size=size)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    total = scheduler.config.num_train_timesteps
    generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
    noise = torch.randn(batch.latents.shape, generator=generator)
    if spread:
        timesteps = torch.arange(size) * total // size
    else:
        timesteps = torch.randint(0, total, (size,), generator=generator)
    unet = pipeline.unet
    context = pipeline.text_encoder(batch.input_ids.to(pipeline.text_encoder.device))[0]
    noisy = scheduler.add_noise(batch.latents.float(), noise, timesteps)
    return NoisyLatents(
        noisy.to(unet.device, unet.dtype), timesteps.to(unet.device), context.to(unet.device, unet.dtype)
    )


class NoiseError:
    """Measures candidates against the full-precision model's noise on one fixed set of noisy latents."""

    def __init__(self, pipeline: Any, settings: NoiseErrorSettings, data: TrainingData) -> None:
        self.unet = pipeline.unet
        self.settings = settings
        inputs = noisy_latents(pipeline, data, 0, settings.samples, settings.seed, spread=True)
        self.inputs = list(inputs.split(settings.batch_size))
        self.wanted = self._predict()

    def measure(self, name: str, bits: int) -> dict[str, float | None]:
        """{mse} of layer `name` alone at `bits`: the mean squared difference of the predicted noise."""
        layer = self.unet.get_submodule(name)
        try:
            scale = initial_scale(layer.weight, bits, self.settings.scale_init)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        rounded = dequantize(quantize(layer.weight, scale, bits), scale, layer.weight.dtype)
        with _weight(layer, rounded):
            got = self._predict()
        errors = torch.stack([(a - b).double().square().mean() for a, b in zip(got, self.wanted, strict=True)])
        sizes = torch.tensor([len(part) for part in got], device=errors.device)
        return {"mse": float((errors * sizes).sum() / sizes.sum())}

    @torch.no_grad()
    def _predict(self) -> list[Tensor]:
        return [part.predict(self.unet) for part in self.inputs]


@contextlib.contextmanager
def _weight(layer: Any, weight: Tensor) -> Iterator[None]:
    """`layer` with another weight, and with its own again afterwards."""
    own = layer.weight.data
    layer.weight.data = weight
    try:
        yield
    finally:
        layer.weight.data = own
