"""diffusers' autoencoders: AutoencoderKL and FLUX.2's, and the deep-compression one of Sana."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.layers import LayerRole

_ENDS = re.compile(r"^((encoder|decoder)\.conv_(in|out)(\.conv)?|(post_)?quant_conv)$")


@dataclass(frozen=True)
class Autoencoder(Architecture):
    """First and last convolutions and the two small ones at the latents are kept at 8 bits, as in the UNet."""

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if _ENDS.search(name) else LayerRole.QUANTIZED


VAES = tuple(
    Autoencoder(name, "VAE", "diffusers", "vae", (nn.Linear, nn.Conv2d))
    for name in ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderDC")
)
