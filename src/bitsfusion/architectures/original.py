"""The names that a denoiser's tensors have outside diffusers: in the layouts of the original repositories.

Programs such as ComfyUI and stable-diffusion.cpp read those. A tensor there is one of diffusers', or several of them
one below the other (q, k and v in one), or one whose halves have changed places (shift and scale). diffusers' own
converters lead from there to here, and the tests hold these tables to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitsfusion.architectures.unet import UNET
from bitsfusion.errors import InputError


@dataclass(frozen=True)
class Source:
    """Where a tensor of the original layout comes from.

    Fields:
        names: diffusers' tensors, whose rows lie one below the other in this order.
        swapped: whether the lower half of the rows comes first.
    """

    names: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True)
class Layout:
    """What readers outside diffusers expect of one class.

    Fields:
        architecture: its name in GGUF files.
        prefix: before every tensor's name.
        tensors: the original name (with the prefix) of every tensor, and what it is made of.
    """

    architecture: str
    prefix: str
    tensors: Mapping[str, Source]


@dataclass(frozen=True)
class _Rule:
    """A layer here and there; # is a block's number. `place` orders what is joined."""

    here: str
    there: str
    place: int = 0
    swapped: bool = False

    def apply(self, layer: str) -> str | None:
        found = re.fullmatch(re.escape(self.here).replace(r"\#", r"(\d+)"), layer)
        return self.there.replace("#", found[1]) if found and found.groups() else self.there if found else None


def _rules(table: Mapping[str, str]) -> tuple[_Rule, ...]:
    """`here` -> `there`; layers that are joined are separated by spaces, ~ marks a swap."""
    return tuple(
        _Rule(stem, there.removeprefix("~"), place, there.startswith("~"))
        for here, there in table.items()
        for place, stem in enumerate(here.split())
    )


def _joint(here: str, names: str) -> str:
    return " ".join(f"{here}.{name}" for name in names.split())


_FLUX_STREAM = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm.scale",
    "attn.norm_k": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
}
_DOUBLE, _SINGLE = "transformer_blocks.#", "single_transformer_blocks.#"
_FLUX_DOUBLE = {
    _joint(f"{_DOUBLE}.attn", "to_q to_k to_v"): "double_blocks.#.img_attn.qkv",
    _joint(f"{_DOUBLE}.attn", "add_q_proj add_k_proj add_v_proj"): "double_blocks.#.txt_attn.qkv",
    **{f"{_DOUBLE}.{here}": f"double_blocks.#.{there}" for here, there in _FLUX_STREAM.items()},
}
_FLUX_ENDS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "~final_layer.adaLN_modulation.1",
}


def _embedder(here: str, there: str, layers: str = "in_layer out_layer") -> dict[str, str]:
    first, second = layers.split()
    return {f"{here}.linear_1": f"{there}.{first}", f"{here}.linear_2": f"{there}.{second}"}


_FLUX = {
    **_FLUX_ENDS,
    **_FLUX_DOUBLE,
    **_embedder("time_text_embed.timestep_embedder", "time_in"),
    **_embedder("time_text_embed.text_embedder", "vector_in"),
    **_embedder("time_text_embed.guidance_embedder", "guidance_in"),
    f"{_DOUBLE}.norm1.linear": "double_blocks.#.img_mod.lin",
    f"{_DOUBLE}.norm1_context.linear": "double_blocks.#.txt_mod.lin",
    f"{_DOUBLE}.ff.net.0.proj": "double_blocks.#.img_mlp.0",
    f"{_DOUBLE}.ff.net.2": "double_blocks.#.img_mlp.2",
    f"{_DOUBLE}.ff_context.net.0.proj": "double_blocks.#.txt_mlp.0",
    f"{_DOUBLE}.ff_context.net.2": "double_blocks.#.txt_mlp.2",
    _joint(_SINGLE, "attn.to_q attn.to_k attn.to_v proj_mlp"): "single_blocks.#.linear1",
    f"{_SINGLE}.proj_out": "single_blocks.#.linear2",
    f"{_SINGLE}.norm.linear": "single_blocks.#.modulation.lin",
    f"{_SINGLE}.attn.norm_q": "single_blocks.#.norm.query_norm.scale",
    f"{_SINGLE}.attn.norm_k": "single_blocks.#.norm.key_norm.scale",
}
_FLUX2 = {
    **_FLUX_ENDS,
    **_FLUX_DOUBLE,
    **_embedder("time_guidance_embed.timestep_embedder", "time_in"),
    **_embedder("time_guidance_embed.guidance_embedder", "guidance_in"),
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    f"{_DOUBLE}.ff.linear_in": "double_blocks.#.img_mlp.0",
    f"{_DOUBLE}.ff.linear_out": "double_blocks.#.img_mlp.2",
    f"{_DOUBLE}.ff_context.linear_in": "double_blocks.#.txt_mlp.0",
    f"{_DOUBLE}.ff_context.linear_out": "double_blocks.#.txt_mlp.2",
    f"{_SINGLE}.attn.to_qkv_mlp_proj": "single_blocks.#.linear1",
    f"{_SINGLE}.attn.to_out": "single_blocks.#.linear2",
    f"{_SINGLE}.attn.norm_q": "single_blocks.#.norm.query_norm.scale",
    f"{_SINGLE}.attn.norm_k": "single_blocks.#.norm.key_norm.scale",
}
_X, _CONTEXT = "joint_blocks.#.x_block", "joint_blocks.#.context_block"
_SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    **_embedder("time_text_embed.timestep_embedder", "t_embedder", "mlp.0 mlp.2"),
    **_embedder("time_text_embed.text_embedder", "y_embedder", "mlp.0 mlp.2"),
    _joint(f"{_DOUBLE}.attn", "to_q to_k to_v"): f"{_X}.attn.qkv",
    _joint(f"{_DOUBLE}.attn2", "to_q to_k to_v"): f"{_X}.attn2.qkv",
    _joint(f"{_DOUBLE}.attn", "add_q_proj add_k_proj add_v_proj"): f"{_CONTEXT}.attn.qkv",
    f"{_DOUBLE}.attn.norm_q": f"{_X}.attn.ln_q",
    f"{_DOUBLE}.attn.norm_k": f"{_X}.attn.ln_k",
    f"{_DOUBLE}.attn2.norm_q": f"{_X}.attn2.ln_q",
    f"{_DOUBLE}.attn2.norm_k": f"{_X}.attn2.ln_k",
    f"{_DOUBLE}.attn.norm_added_q": f"{_CONTEXT}.attn.ln_q",
    f"{_DOUBLE}.attn.norm_added_k": f"{_CONTEXT}.attn.ln_k",
    f"{_DOUBLE}.attn.to_out.0": f"{_X}.attn.proj",
    f"{_DOUBLE}.attn2.to_out.0": f"{_X}.attn2.proj",
    f"{_DOUBLE}.attn.to_add_out": f"{_CONTEXT}.attn.proj",
    f"{_DOUBLE}.norm1.linear": f"{_X}.adaLN_modulation.1",
    f"{_DOUBLE}.norm1_context.linear": f"{_CONTEXT}.adaLN_modulation.1",
    f"{_DOUBLE}.ff.net.0.proj": f"{_X}.mlp.fc1",
    f"{_DOUBLE}.ff.net.2": f"{_X}.mlp.fc2",
    f"{_DOUBLE}.ff_context.net.0.proj": f"{_CONTEXT}.mlp.fc1",
    f"{_DOUBLE}.ff_context.net.2": f"{_CONTEXT}.mlp.fc2",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "~final_layer.adaLN_modulation.1",
}
_AURA_FF = {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}
_AURA = {
    "pos_embed.proj": "init_x_linear",
    "context_embedder": "cond_seq_linear",
    "proj_out": "final_linear",
    "norm_out.linear": "~modF.1",
    **_embedder("time_step_proj", "t_embedder", "mlp.0 mlp.2"),
    **{f"joint_transformer_blocks.#.ff.{here}": f"double_layers.#.mlpX.{there}" for here, there in _AURA_FF.items()},
    **{
        f"joint_transformer_blocks.#.ff_context.{here}": f"double_layers.#.mlpC.{there}"
        for here, there in _AURA_FF.items()
    },
    **{f"single_transformer_blocks.#.ff.{here}": f"single_layers.#.mlp.{there}" for here, there in _AURA_FF.items()},
    "joint_transformer_blocks.#.norm1.linear": "double_layers.#.modX.1",
    "joint_transformer_blocks.#.norm1_context.linear": "double_layers.#.modC.1",
    "single_transformer_blocks.#.norm1.linear": "single_layers.#.modCX.1",
    **{
        f"{block}.#.attn.{here}": f"{layers}.#.attn.{there}"
        for block, layers, number in (
            ("joint_transformer_blocks", "double_layers", 2),
            ("single_transformer_blocks", "single_layers", 1),
        )
        for here, there in (
            ("to_q", f"w{number}q"),
            ("to_k", f"w{number}k"),
            ("to_v", f"w{number}v"),
            ("to_out.0", f"w{number}o"),
        )
    },
    **{
        f"joint_transformer_blocks.#.attn.{here}": f"double_layers.#.attn.{there}"
        for here, there in (("add_q_proj", "w1q"), ("add_k_proj", "w1k"), ("add_v_proj", "w1v"), ("to_add_out", "w1o"))
    },
}
_Z_IMAGE = {
    **{
        key: value
        for part in ("layers", "noise_refiner", "context_refiner")
        for key, value in (
            (_joint(f"{part}.#.attention", "to_q to_k to_v"), f"{part}.#.attention.qkv"),
            (f"{part}.#.attention.to_out.0", f"{part}.#.attention.out"),
            (f"{part}.#.attention.norm_q", f"{part}.#.attention.q_norm"),
            (f"{part}.#.attention.norm_k", f"{part}.#.attention.k_norm"),
        )
    },
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}


@dataclass(frozen=True)
class _Family:
    """A class: its name in GGUF, its layers, its bare tensors, and whether all else keeps its name."""

    architecture: str
    rules: tuple[_Rule, ...] = ()
    bare: tuple[tuple[str, str], ...] = ()
    rest: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "FluxTransformer2DModel": _Family("flux", _rules(_FLUX)),
    "Flux2Transformer2DModel": _Family("flux", _rules(_FLUX2)),
    "SD3Transformer2DModel": _Family("sd3", _rules(_SD3), (("pos_embed.pos_embed", "pos_embed"),)),
    "AuraFlowTransformer2DModel": _Family(
        "aura",
        _rules(_AURA),
        (("pos_embed.pos_embed", "positional_encoding"), ("register_tokens", "register_tokens")),
    ),
    "ZImageTransformer2DModel": _Family("lumina2", _rules(_Z_IMAGE), rest=True),
    "QwenImageTransformer2DModel": _Family("qwen_image", rest=True),
}
ORIGINAL_CLASSES = (UNET.name, *_FAMILIES)
"""Those that have a layout outside diffusers that other programs read."""


def original_layout(class_name: str, config: Mapping[str, Any], names: Iterable[str]) -> Layout:
    """The original names of a model's tensors.

    Args:
        class_name: of the model.
        config: the model's.
        names: of all its tensors in diffusers.

    Raises:
        InputError: another class, or a tensor that the original layout has no place for.
    """
    names = list(names)
    if class_name == UNET.name:
        architecture = "sdxl" if config.get("addition_embed_type") == "text_time" else "sd1"
        prefix = "model.diffusion_model."
        return Layout(architecture, prefix, _made(names, _Family(architecture, _unet_rules(config, names)), prefix))
    if class_name not in _FAMILIES:
        raise InputError(f"model: got a {class_name}, wanted one of {', '.join(ORIGINAL_CLASSES)}")
    family = _FAMILIES[class_name]
    if class_name == "SD3Transformer2DModel":
        last = f"transformer_blocks.{config['num_layers'] - 1}.norm1_context.linear"
        there = f"joint_blocks.{config['num_layers'] - 1}.context_block.adaLN_modulation.1"
        family = _Family(family.architecture, (_Rule(last, there, swapped=True), *family.rules), family.bare)
    return Layout(family.architecture, "", _made(names, family, ""))


def _made(names: Sequence[str], family: _Family, prefix: str) -> dict[str, Source]:
    parts: dict[str, list[tuple[int, str, bool]]] = {}
    for name in names:
        there, place, swapped = _place(name, family)
        parts.setdefault(prefix + there, []).append((place, name, swapped))
    return {
        there: Source(tuple(name for _, name, _ in sorted(found)), any(swapped for *_, swapped in found))
        for there, found in parts.items()
    }


def _place(name: str, family: _Family) -> tuple[str, int, bool]:
    if name in dict(family.bare):
        return dict(family.bare)[name], 0, False
    layer, _, leaf = name.rpartition(".")
    for rule in family.rules:
        there = rule.apply(layer)
        if there is not None:
            return there if there.endswith(".scale") else f"{there}.{leaf}", rule.place, rule.swapped
    if family.rest:
        return name, 0, False
    raise InputError(f"{name}: got a tensor that the original layout has no place for")


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_rules(config: Mapping[str, Any], names: Iterable[str]) -> tuple[_Rule, ...]:
    """Blocks are numbered through: a ResBlock with the attention behind it, a sampler, and so on."""
    table = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        **_embedder("time_embedding", "time_embed", "0 2"),
        **_embedder("add_embedding", "label_emb.0", "0 2"),
        **_embedder("class_embedding", "label_emb.0", "0 2"),
    }
    inside: dict[str, str] = {}  # a resnet's or an attention's name -> there

    depth = config["layers_per_block"]
    levels = len(config["block_out_channels"])
    depths = [depth] * levels if isinstance(depth, int) else list(depth)
    number = 1
    for level in range(levels):
        for place in range(depths[level]):
            inside[f"down_blocks.{level}.resnets.{place}"] = f"input_blocks.{number}.0"
            inside[f"down_blocks.{level}.attentions.{place}"] = f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    inside["mid_block.resnets.0"] = "middle_block.0"
    inside["mid_block.attentions.0"] = "middle_block.1"
    inside["mid_block.resnets.1"] = "middle_block.2"
    known = set(names)
    number = 0
    for level, layers in enumerate(reversed(depths)):
        for place in range(layers + 1):
            inside[f"up_blocks.{level}.resnets.{place}"] = f"output_blocks.{number}.0"
            inside[f"up_blocks.{level}.attentions.{place}"] = f"output_blocks.{number}.1"
            if place == layers and level < levels - 1:
                attended = f"up_blocks.{level}.attentions.{place}.proj_in.weight" in known
                sampler = f"output_blocks.{number}.{2 if attended else 1}.conv"
                table[f"up_blocks.{level}.upsamplers.0.conv"] = sampler
            number += 1
    for name in known:
        layer = name.rpartition(".")[0]
        owner = ".".join(layer.split(".")[: 3 if layer.startswith("mid_block") else 4])
        if owner in inside and layer != owner:
            leaf = layer.removeprefix(f"{owner}.")
            table[layer] = f"{inside[owner]}.{_RESNET.get(leaf, leaf) if '.resnets.' in owner else leaf}"
    return _rules(table)
