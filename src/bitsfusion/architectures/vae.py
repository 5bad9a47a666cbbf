"""diffusers' autoencoders: AutoencoderKL and FLUX.2's, Sana's deep-compression one, and Qwen-Image's of one frame."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitsfusion.architectures import shapes
from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.latents import DEEP_COMPRESSION, FLUX2, KL, QWEN_IMAGE, Latents
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.shapes import Shapes, Tensors

_ENDS = re.compile(r"^((encoder|decoder)\.conv_(in|out)(\.conv)?|(post_)?quant_conv)$")


_KNOWN: Mapping[str, Any] = {
    "_class_name": ("", shapes.anything),
    "_diffusers_version": ("", shapes.anything),
    "_name_or_path": ("", shapes.anything),
    "sample_size": (32, shapes.number_or_none),
    "scaling_factor": (0.18215, shapes.number),
    "shift_factor": (None, shapes.number_or_none),
    "latents_mean": (None, shapes.anything),
    "latents_std": (None, shapes.anything),
    "force_upcast": (True, shapes.number),
    "act_fn": ("silu", shapes.only("silu")),
    "in_channels": (3, shapes.size),
    "out_channels": (3, shapes.size),
    "latent_channels": (4, shapes.size),
    "block_out_channels": ((64,), shapes.sizes),
    "layers_per_block": (1, shapes.few),
    "norm_num_groups": (32, shapes.size),
    "down_block_types": (("DownEncoderBlock2D",), shapes.names("DownEncoderBlock2D")),
    "up_block_types": (("UpDecoderBlock2D",), shapes.names("UpDecoderBlock2D")),
    "mid_block_add_attention": (True, shapes.only(False, True)),
    "use_quant_conv": (True, shapes.only(False, True)),
    "use_post_quant_conv": (True, shapes.only(False, True)),
}


@dataclass(frozen=True)
class Autoencoder(Architecture):
    """First and last convolutions and the two small ones at the latents are kept at 8 bits, as in the UNet.

    Fields:
        latents: what it makes of images.
    """

    latents: Latents

    def role(self, name: str) -> LayerRole:
        return LayerRole.FIRST_LAST if _ENDS.search(name) else LayerRole.QUANTIZED

    def _shapes(self, config: Mapping[str, Any]) -> Shapes:
        shapes.need(self.name == "AutoencoderKL")
        values = shapes.checked(config, _KNOWN)
        widths, layers, groups = values["block_out_channels"], values["layers_per_block"], values["norm_num_groups"]
        shapes.need(len(widths) == len(values["down_block_types"]) == len(values["up_block_types"]))
        latents, last, found = values["latent_channels"], len(widths) - 1, Tensors()
        found.conv("encoder.conv_in", values["in_channels"], widths[0])
        for place, width in enumerate(widths):
            name = f"encoder.down_blocks.{place}"
            before = widths[max(place - 1, 0)]
            for layer in range(layers):
                found.resnet(f"{name}.resnets.{layer}", before if layer == 0 else width, width, groups)
            if place != last:
                found.conv(f"{name}.downsamplers.0.conv", width, width)
        _middle(found, "encoder", widths[-1], groups, values["mid_block_add_attention"])
        found.norm("encoder.conv_norm_out", widths[-1], groups)
        found.conv("encoder.conv_out", widths[-1], 2 * latents)
        found.conv("decoder.conv_in", latents, widths[-1])
        before = widths[-1]
        for place, width in enumerate(widths[::-1]):
            name = f"decoder.up_blocks.{place}"
            for layer in range(layers + 1):
                found.resnet(f"{name}.resnets.{layer}", before if layer == 0 else width, width, groups)
            if place != last:
                found.conv(f"{name}.upsamplers.0.conv", width, width)
            before = width
        _middle(found, "decoder", widths[-1], groups, values["mid_block_add_attention"])
        found.norm("decoder.conv_norm_out", widths[0], groups)
        found.conv("decoder.conv_out", widths[0], values["out_channels"])
        if values["use_quant_conv"]:
            found.conv("quant_conv", 2 * latents, 2 * latents, 1)
        if values["use_post_quant_conv"]:
            found.conv("post_quant_conv", latents, latents, 1)
        return found.found


def _middle(found: Tensors, part: str, width: int, groups: int, attention: bool) -> None:
    name = f"{part}.mid_block"
    if attention:
        found.norm(f"{name}.attentions.0.group_norm", width, groups)
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            found.linear(f"{name}.attentions.0.{layer}", width, width)
    for place in range(2):
        found.resnet(f"{name}.resnets.{place}", width, width, groups)


def _autoencoder(name: str, latents: Latents, *layers: str) -> Autoencoder:
    return Autoencoder(name, "VAE", "diffusers", "vae", ("Linear", "Conv2d", *layers), latents)


VAES = (
    _autoencoder("AutoencoderKL", KL),
    _autoencoder("AutoencoderKLFlux2", FLUX2),
    _autoencoder("AutoencoderDC", DEEP_COMPRESSION),
    _autoencoder("AutoencoderKLQwenImage", QWEN_IMAGE, "Conv3d"),
)
