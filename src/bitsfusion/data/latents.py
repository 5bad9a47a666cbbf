"""Pictures as latents in the form that a denoiser is given them, by the class of the VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from bitsfusion.architectures.vae import pixels_per_latent
from bitsfusion.errors import InputError

_PER_CALL = 32  # images through the VAE at once


@dataclass(frozen=True)
class _Form:
    """How one class encodes.

    Fields:
        encode: (vae, pixels) -> latents as the denoiser is given them, [n, c, h, w].
        channels: c, by the VAE's config.
        scale: what of the config and the buffers the latents' values depend on, as JSON.
    """

    encode: Callable[[Any, Tensor], Tensor]
    channels: Callable[[Any], int]
    scale: Callable[[Any], list[Any]]


def _kl(vae: Any, pixels: Tensor) -> Tensor:
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: Tensor = vae.encode(pixels).latent_dist.mode().float()
    return (latents - shift) * float(vae.config.scaling_factor)


def _flux2(vae: Any, pixels: Tensor) -> Tensor:
    """Patches of 2x2 in the channels, each channel standardized by the VAE's batch norm."""
    patches = pixel_unshuffle(vae.encode(pixels).latent_dist.mode().float(), 2)
    mean, variance = (value.float().view(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
    return (patches - mean) / torch.sqrt(variance + vae.config.batch_norm_eps)


def _deep(vae: Any, pixels: Tensor) -> Tensor:
    latents: Tensor = vae.encode(pixels).latent.float()
    return latents * float(vae.config.scaling_factor)


def _qwen_image(vae: Any, pixels: Tensor) -> Tensor:
    """A video of one picture, each channel standardized."""
    latents: Tensor = vae.encode(pixels.unsqueeze(2)).latent_dist.mode().float().squeeze(2)
    mean, spread = (latents.new_tensor(vae.config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    return (latents - mean) / spread


def _same(vae: Any) -> int:
    return int(vae.config.latent_channels)


def _scale(vae: Any) -> list[Any]:
    return [vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)]


_FORMS = {
    "AutoencoderKL": _Form(_kl, _same, _scale),
    "AutoencoderKLFlux2": _Form(
        _flux2, lambda vae: 4 * _same(vae), lambda vae: [vae.bn.running_mean.tolist(), vae.bn.running_var.tolist()]
    ),
    "AutoencoderDC": _Form(_deep, _same, lambda vae: [vae.config.scaling_factor]),
    "AutoencoderKLQwenImage": _Form(
        _qwen_image, lambda vae: int(vae.config.z_dim), lambda vae: [vae.config.latents_mean, vae.config.latents_std]
    ),
}


def _form(vae: Any) -> _Form:
    for kind in type(vae).__mro__:
        if kind.__name__ in _FORMS:
            return _FORMS[kind.__name__]
    known = ", ".join(_FORMS)
    raise InputError(f"vae: got a {type(vae).__name__}, wanted one of {known}: images are encoded with no other")


def latent_shape(vae: Any, resolution: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents of a square picture, as a denoiser is given them.

    Raises:
        InputError: a class of VAE that is not known, or a resolution that is not a multiple of its stride.
    """
    form = _form(vae)
    stride = pixels_per_latent(type(vae).__name__, vae.config)
    if resolution < stride or resolution % stride:
        raise InputError(f"resolution: got {resolution}, wanted a multiple of {stride} pixels, the VAE's stride")
    return form.channels(vae), resolution // stride, resolution // stride


def latent_scale(vae: Any) -> list[Any]:
    """What the latents' values depend on beside the encoder's weights, as JSON."""
    return _form(vae).scale(vae)


@torch.no_grad()
def encode_images(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of images: the mean of the VAE's posterior, in the form and scale that the denoiser expects.

    Differs from diffusers' train_text_to_image.py, which samples the posterior: the mean can be computed
    once and kept.

    Args:
        vae: an AutoencoderKL, FLUX.2's, Sana's deep-compression one or Qwen-Image's.
        pixels: [n, 3, height, width] float32 in [-1, 1], on any device.

    Returns:
        [n, c, h, w] float32 on the CPU.

    Raises:
        InputError: another class.
    """
    form, parameter = _form(vae), next(vae.parameters())
    parts = [
        form.encode(vae, part.to(parameter.device, parameter.dtype)).float().cpu() for part in pixels.split(_PER_CALL)
    ]
    return torch.cat(parts)
