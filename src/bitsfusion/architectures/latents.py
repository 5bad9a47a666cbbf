"""Images to the latents that a denoiser is given: each class of autoencoder scales them in its own way.

Posteriors are not sampled: their means can be computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """What a class of autoencoder makes of images.

    Fields:
        encode: the model and pixels [n, 3, h, w] in [-1, 1], on its device and in its dtype -> latents [n, c, h', w'].
        levels: the key of its config whose list has an item for each level of resolution.
        channels: the key of its config that says how many channels it has.
        scaled_by: keys of its config that the values depend on besides the weights.
        patch: latents of patch x patch places are one place with patch^2 times the channels.
    """

    encode: Callable[[Any, Tensor], Tensor]
    levels: str
    channels: str
    scaled_by: tuple[str, ...]
    patch: int = 1

    def stride(self, config: Mapping[str, Any]) -> int:
        """Pixels of a place along each side."""
        return self.patch * 2 ** (len(config[self.levels]) - 1)

    def shape(self, config: Mapping[str, Any], resolution: int) -> tuple[int, int, int]:
        """Channels, height and width of a square image's latents."""
        side = resolution // self.stride(config)
        return int(config[self.channels]) * self.patch**2, side, side


def _kl(vae: Any, pixels: Tensor) -> Tensor:
    mean: Tensor = vae.encode(pixels).latent_dist.mode().float()
    return (mean - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def _flux2(vae: Any, pixels: Tensor) -> Tensor:
    """Patches of 2x2 as channels, normalized by the statistics that the model holds."""
    mean: Tensor = vae.encode(pixels).latent_dist.mode().float()
    count, channels, height, width = mean.shape
    parts = mean.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    patches = parts.reshape(count, channels * 4, height // 2, width // 2)
    center, spread = (each.float().view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
    return (patches - center) / (spread + vae.config.batch_norm_eps).sqrt()


def _deep_compression(vae: Any, pixels: Tensor) -> Tensor:
    latents: Tensor = vae.encode(pixels).latent.float()
    return latents * vae.config.scaling_factor


def _qwen_image(vae: Any, pixels: Tensor) -> Tensor:
    """One frame, each channel normalized."""
    mean: Tensor = vae.encode(pixels.unsqueeze(2)).latent_dist.mode().float().squeeze(2)
    center, spread = (
        mean.new_tensor(each).view(1, -1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (mean - center) / spread


KL = Latents(_kl, "block_out_channels", "latent_channels", ("scaling_factor", "shift_factor"))
FLUX2 = Latents(_flux2, "block_out_channels", "latent_channels", ("batch_norm_eps",), patch=2)
DEEP_COMPRESSION = Latents(_deep_compression, "encoder_block_out_channels", "latent_channels", ("scaling_factor",))
QWEN_IMAGE = Latents(_qwen_image, "dim_mult", "z_dim", ("latents_mean", "latents_std"))
