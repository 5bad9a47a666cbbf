"""The VAE and tokenizer as the cache uses them: pixels to stored latents, captions to token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitsfusion.data.batches import encode_images, tokenize
from bitsfusion.data.pixels import to_model_range
from bitsfusion.errors import InputError
from bitsfusion.io.files import sha256_json

LATENT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_PIXELS_AT_ONCE = 4 * 512 * 512


class Encoder:
    """Latents and token ids of captioned images.

    Args:
        vae: an AutoencoderKL on the device that shall encode.
        tokenizer: the text encoder's.
        resolution: of the square images in pixels.
        dtype: of the stored latents, a name in `LATENT_DTYPES`.

    Raises:
        InputError: a resolution that is not a multiple of the VAE's stride.
    """

    def __init__(self, vae: Any, tokenizer: Any, resolution: int, dtype: str) -> None:
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        if resolution < stride or resolution % stride:
            raise InputError(f"resolution: got {resolution}, wanted a multiple of {stride} pixels, the VAE's stride")
        self.resolution = resolution
        self.at_once = max(1, min(32, _PIXELS_AT_ONCE // resolution**2))
        """Images through the VAE at once; does not depend on the device, so that the bits of a chunk do not either."""
        self._vae, self._tokenizer, self._dtype = vae, tokenizer, LATENT_DTYPES[dtype]
        side = resolution // stride
        self._latent_shape = (int(vae.config.latent_channels), side, side)

    def key(self) -> dict[str, Any]:
        """What stored latents and ids depend on: the VAE's encoder, the tokenizer, the resolution and the dtype."""
        return {
            "vae_sha256": _vae_sha256(self._vae),
            "tokenizer_sha256": _tokenizer_sha256(self._tokenizer),
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

    def token_ids(self, captions: Sequence[str]) -> Tensor:
        """[n, tokens] int64."""
        if not captions:
            return torch.empty((0, self._tokenizer.model_max_length), dtype=torch.int64)
        return tokenize(self._tokenizer, captions)

    def cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than are kept."""
        if not captions:
            return 0
        lengths = [len(ids) for ids in self._tokenizer(list(captions), verbose=False).input_ids]
        return sum(length > self._tokenizer.model_max_length for length in lengths)


def _vae_sha256(vae: Any) -> str:
    """Of the weights that encode, whatever device they are on, and of the latents' scale."""
    digest = hashlib.sha256()
    scale = [vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)]
    digest.update(json.dumps([type(vae).__name__, scale]).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Of vocabulary, merges and normalization; padding and length are the caller's and go in on their own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(backend.to_str())
        content = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256_json([content, special, tokenizer.model_max_length])
