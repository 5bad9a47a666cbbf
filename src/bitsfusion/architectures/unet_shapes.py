"""The tensors of a UNet2DConditionModel of Stable Diffusion 1 and 2, from its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitsfusion.architectures import shapes
from bitsfusion.architectures.shapes import Shapes, Tensors

_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_OFF = (
    "addition_embed_type",
    "addition_time_embed_dim",
    "class_embed_type",
    "cross_attention_norm",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "mid_block_only_cross_attention",
    "num_attention_heads",
    "num_class_embeds",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
    "time_cond_proj_dim",
    "time_embedding_act_fn",
    "time_embedding_dim",
    "timestep_post_act",
)
_NO = ("class_embeddings_concat", "dual_cross_attention", "only_cross_attention", "resnet_skip_time_act")
_KNOWN: Mapping[str, Any] = {
    "_class_name": ("", shapes.anything),
    "_diffusers_version": ("", shapes.anything),
    "_name_or_path": ("", shapes.anything),
    "sample_size": (None, shapes.number_or_none),
    "center_input_sample": (False, shapes.number),
    "flip_sin_to_cos": (True, shapes.number),
    "freq_shift": (0, shapes.number),
    "dropout": (0.0, shapes.only(0.0)),
    "norm_eps": (1e-5, shapes.number),
    "mid_block_scale_factor": (1, shapes.number),
    "resnet_out_scale_factor": (1.0, shapes.number),
    "upcast_attention": (False, shapes.number),
    "addition_embed_type_num_heads": (64, shapes.number),
    "act_fn": ("silu", shapes.only("silu")),
    "attention_type": ("default", shapes.only("default")),
    "conv_in_kernel": (3, shapes.only(3)),
    "conv_out_kernel": (3, shapes.only(3)),
    "downsample_padding": (1, shapes.only(1)),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", shapes.only("UNetMidBlock2DCrossAttn")),
    "resnet_time_scale_shift": ("default", shapes.only("default")),
    "time_embedding_type": ("positional", shapes.only("positional")),
    "in_channels": (4, shapes.size),
    "out_channels": (4, shapes.size),
    "block_out_channels": ((320, 640, 1280, 1280), shapes.sizes),
    "layers_per_block": (2, shapes.few),
    "norm_num_groups": (32, shapes.size),
    "cross_attention_dim": (1280, shapes.size),
    "transformer_layers_per_block": (1, shapes.few),
    "attention_head_dim": (8, lambda value: shapes.size(value) or shapes.sizes(value)),
    "use_linear_projection": (False, shapes.only(False, True)),
    "down_block_types": ((_CROSS_DOWN,) * 3 + ("DownBlock2D",), shapes.names(_CROSS_DOWN, "DownBlock2D")),
    "up_block_types": (("UpBlock2D", *(_CROSS_UP,) * 3), shapes.names(_CROSS_UP, "UpBlock2D")),
    **dict.fromkeys(_OFF, (None, shapes.only(None))),
    **dict.fromkeys(_NO, (False, shapes.only(False))),
}


def unet_shapes(config: Mapping[str, Any]) -> Shapes:
    """Every tensor of the dense model; raises `NotKnownError` for a config that is left to the class."""
    values = shapes.checked(config, _KNOWN)
    channels: Sequence[int] = values["block_out_channels"]
    downs, ups, heads = values["down_block_types"], values["up_block_types"], values["attention_head_dim"]
    heads = [heads] * len(channels) if isinstance(heads, int) else list(heads)
    shapes.need(len(downs) == len(ups) == len(heads) == len(channels) and channels[0] % 2 == 0)
    layers, groups, time, last = (
        values["layers_per_block"],
        values["norm_num_groups"],
        4 * channels[0],
        len(channels) - 1,
    )
    found = Tensors()
    found.conv("conv_in", values["in_channels"], channels[0])
    found.linear("time_embedding.linear_1", channels[0], time)
    found.linear("time_embedding.linear_2", time, time)
    for place, kind in enumerate(downs):
        name, width = f"down_blocks.{place}", channels[place]
        if kind == _CROSS_DOWN:
            for layer in range(layers):
                _attention(found, f"{name}.attentions.{layer}", width, heads[place], values)
        for layer in range(layers):
            inputs = channels[max(place - 1, 0)] if layer == 0 else width
            found.resnet(f"{name}.resnets.{layer}", inputs, width, groups, time)
        if place != last:
            found.conv(f"{name}.downsamplers.0.conv", width, width)
    backwards, before = channels[::-1], channels[-1]
    for place, kind in enumerate(ups):
        name, width, skip = f"up_blocks.{place}", backwards[place], backwards[min(place + 1, last)]
        if kind == _CROSS_UP:
            for layer in range(layers + 1):
                _attention(found, f"{name}.attentions.{layer}", width, heads[::-1][place], values)
        for layer in range(layers + 1):
            inputs = (before if layer == 0 else width) + (skip if layer == layers else width)
            found.resnet(f"{name}.resnets.{layer}", inputs, width, groups, time)
        if place != last:
            found.conv(f"{name}.upsamplers.0.conv", width, width)
        before = width
    _attention(found, "mid_block.attentions.0", channels[-1], heads[-1], values)
    for layer in range(2):
        found.resnet(f"mid_block.resnets.{layer}", channels[-1], channels[-1], groups, time)
    found.norm("conv_norm_out", channels[0], groups)
    found.conv("conv_out", channels[0], values["out_channels"])
    return found.found


def _attention(found: Tensors, name: str, width: int, heads: int, values: Mapping[str, Any]) -> None:
    """diffusers' Transformer2DModel of convolution or linear projections."""
    shapes.need(width % heads == 0)

    def project(part: str) -> None:
        if values["use_linear_projection"]:
            found.linear(f"{name}.{part}", width, width)
        else:
            found.conv(f"{name}.{part}", width, width, 1)

    found.norm(f"{name}.norm", width, values["norm_num_groups"])
    project("proj_in")
    for layer in range(values["transformer_layers_per_block"]):
        block = f"{name}.transformer_blocks.{layer}"
        for place, context in ((1, width), (2, values["cross_attention_dim"])):
            found.norm(f"{block}.norm{place}", width)
            found.linear(f"{block}.attn{place}.to_q", width, width, bias=False)
            found.linear(f"{block}.attn{place}.to_k", context, width, bias=False)
            found.linear(f"{block}.attn{place}.to_v", context, width, bias=False)
            found.linear(f"{block}.attn{place}.to_out.0", width, width)
        found.norm(f"{block}.norm3", width)
        found.linear(f"{block}.ff.net.0.proj", width, 8 * width)
        found.linear(f"{block}.ff.net.2", 4 * width, width)
    project("proj_out")
