"""The VAE and the conditioner as the cache uses them: pixels to stored latents, captions to stored rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitsfusion.architectures.registry import latents_of
from bitsfusion.data.batches import encode_images
from bitsfusion.data.pixels import to_model_range
from bitsfusion.diffusion.conditioning import Conditioner
from bitsfusion.errors import InputError

LATENT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_PIXELS_AT_ONCE = 4 * 512 * 512


class Encoder:
    """Latents and prompt rows of captioned images.

    Args:
        vae: of a known class, on the device that encodes.
        conditioner: of the pipeline's prompts.
        resolution: of the square images in pixels.
        dtype: of the stored latents, a name in `LATENT_DTYPES`.

    Raises:
        InputError: a resolution that is not a multiple of the VAE's stride.
    """

    def __init__(self, vae: Any, conditioner: Conditioner, resolution: int, dtype: str) -> None:
        stride = latents_of(vae).stride(vae.config)
        if resolution < stride or resolution % stride:
            raise InputError(f"resolution: got {resolution}, wanted a multiple of {stride} pixels, the VAE's stride")
        self.resolution = resolution
        self.at_once = max(1, min(32, _PIXELS_AT_ONCE // resolution**2))
        """Images through the VAE at once; does not depend on the device, so that the bits of a chunk do not either."""
        self.conditioner, self._vae, self._dtype = conditioner, vae, LATENT_DTYPES[dtype]
        self._latent_shape = latents_of(vae).shape(vae.config, resolution)

    def key(self) -> dict[str, Any]:
        """What stored latents and rows depend on: the VAE's encoder, the conditioner, the resolution and the dtype."""
        return {
            "vae_sha256": _vae_sha256(self._vae),
            **self.conditioner.key(),
            "resolution": self.resolution,
            "dtype": str(self._dtype).removeprefix("torch."),
        }

    def latents(self, pixels: Sequence[Tensor]) -> Tensor:
        """uint8 images [3, h, w] -> [n, c, h, w] in the stored dtype."""
        if not pixels:
            return torch.empty((0, *self._latent_shape), dtype=self._dtype)
        parameter = next(self._vae.parameters())
        stacked = torch.stack(list(pixels)).to(parameter.device)
        return encode_images(self._vae, to_model_range(stacked)).to(self._dtype)


def _vae_sha256(vae: Any) -> str:
    """A hash of the weights that encode, whatever device they are on, and of the latents' scale."""
    digest = hashlib.sha256()
    scale = [vae.config.get(key) for key in latents_of(vae).scaled_by]
    digest.update(json.dumps([type(vae).__name__, scale]).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.", "bn.running_")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
