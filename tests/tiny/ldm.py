"""A diffusers pipeline's weights under the names of the original LDM and SDXL code, in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.weight": "label_emb.weight",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(pipeline: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a whole pipeline of SD 1's or SDXL's kind as one file."""
    tensors = {f"model.diffusion_model.{name}": value for name, value in unet_tensors(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in vae_tensors(pipeline.vae).items()}
    if getattr(pipeline, "text_encoder_2", None) is None:
        tensors |= clip_tensors(pipeline.text_encoder, "cond_stage_model.transformer.")
    else:
        number = 0
        if pipeline.text_encoder is not None:
            tensors |= clip_tensors(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
            number = 1
        tensors |= open_clip_tensors(pipeline.text_encoder_2, f"conditioner.embedders.{number}.model.")
    save_file({name: value.detach().to(dtype).contiguous() for name, value in tensors.items()}, path)
    return path


def unet_tensors(unet: Any) -> dict[str, Tensor]:
    step = unet.config.layers_per_block + 1
    made = {}
    for name, value in unet.state_dict().items():
        for new, old in _UNET_ENDS.items():
            if name.startswith(new):
                name = name.replace(new, old)
        if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            place = 1 if found[1] == "attentions" else 2 * int(found[2])
            name = f"middle_block.{place}.{_resnet(found[3], found[1])}"
        elif found := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
            place, part = int(found[1]) * step + int(found[3]) + 1, int(found[2] == "attentions")
            name = f"input_blocks.{place}.{part}.{_resnet(found[4], found[2])}"
        elif found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
            name = f"input_blocks.{(int(found[1]) + 1) * step}.0.op.{found[2]}"
        elif found := re.match(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
            place, part = int(found[1]) * step + int(found[3]), int(found[2] == "attentions")
            name = f"output_blocks.{place}.{part}.{_resnet(found[4], found[2])}"
        elif found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):
            after = 2 if hasattr(unet.up_blocks[int(found[1])], "attentions") else 1
            name = f"output_blocks.{int(found[1]) * step + step - 1}.{after}.conv.{found[2]}"
        made[name] = value
    return made


def _resnet(name: str, kind: str) -> str:
    return _renamed(name, _RESNET) if kind == "resnets" else name


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for new, old in names.items():
        name = re.sub(rf"^{re.escape(new)}\b", old, name)
    return name


def vae_tensors(vae: Any) -> dict[str, Tensor]:
    last = len(vae.config.up_block_types) - 1
    made = {}
    for name, value in vae.state_dict().items():
        name = name.replace("conv_norm_out", "norm_out")
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{last - int(found[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{last - int(found[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut")
        if found := re.match(r"(.*)mid_block\.attentions\.0\.(.*)", name):
            name = f"{found[1]}mid.attn_1.{_renamed(found[2], _VAE_ATTENTION)}"
            value = value[:, :, None, None] if value.dim() == 2 else value  # 1x1 convolutions there
        made[name] = value
    return made


def clip_tensors(model: Any, prefix: str) -> dict[str, Tensor]:
    names = {name: name if name.startswith("text_model.") else f"text_model.{name}" for name in model.state_dict()}
    return {prefix + names[name]: value for name, value in model.state_dict().items()}


def open_clip_tensors(model: Any, prefix: str) -> dict[str, Tensor]:
    """One matrix for queries, keys and values, and other names."""
    made: dict[str, Tensor] = {}
    state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    ends = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    for name, value in state.items():
        layer = re.match(r"encoder\.layers\.(\d)\.(.*)", name)
        if name in ends:
            made[ends[name]] = value
        elif name == "text_projection.weight":
            made["text_projection"] = value.T
        elif layer and ".k_proj" not in name and ".v_proj" not in name:
            rest, kind = layer[2], layer[2].rpartition(".")[2]
            if ".q_proj" in name:
                parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
                rest, value = f"attn.in_proj_{kind}", torch.cat(parts)
            for new, old in {
                "layer_norm1": "ln_1",
                "layer_norm2": "ln_2",
                "fc1": "c_fc",
                "fc2": "c_proj",
                "self_attn": "attn",
            }.items():
                rest = rest.replace(new, old)
            made[f"transformer.resblocks.{layer[1]}.{rest}"] = value
    return {prefix + name: value for name, value in made.items()}
