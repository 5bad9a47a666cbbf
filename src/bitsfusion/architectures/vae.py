"""diffusers' AutoencoderKL: from pixels to latents and back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.layers import LayerRole

_ENDS = re.compile(r"^((encoder|decoder)\.conv_(in|out)|(post_)?quant_conv)$")


@dataclass(frozen=True)
class Autoencoder(Architecture):
    """First and last convolutions and the two small ones at the latents are kept at 8 bits, as in the UNet."""

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if _ENDS.search(name) else LayerRole.QUANTIZED


VAE = Autoencoder("AutoencoderKL", "VAE", "diffusers", "vae", ("Linear", "Conv2d"))
