"""Where a transformer's time step goes: the embedding, and the modulation layers that see nothing else.

Outputs of these layers depend on the time step alone, as those of a UNet's time projections do (section 4.1), so that
stored features can stand for them. In FLUX.1 and SD3 pooled text enters as well: their layers stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitsfusion.architectures.layers import FIXED_BITS, MODULATION_BITS

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Timing:
    """What of a class the time step alone decides.

    Fields:
        entry: the module that the forward gives the step to.
        scale: what the forward's number is multiplied by to be a time step of the scheduler, 0 to 1000.
        rest: a module that the entry's output goes through on the way to the outputs; "" where there is none.
        embedded: the model and time steps [n] -> the embedding [n, width].
        outputs: patterns of the names of the linear layers that are given it, each with the leaf of the activation
            before it, beside the layer; "" where there is none.
        others: keys of the config that add to the embedding if they are set.
        bits: about what the layers have where they stay.
        embedding: the output that is the embedding itself, where the forward reads that as well: the entry then holds
            one more output and returns (this, the embedding). "" elsewhere.
    """

    entry: str
    scale: float
    rest: str
    embedded: Callable[[Any, Tensor], Tensor]
    outputs: tuple[tuple[str, str], ...]
    others: tuple[str, ...] = ()
    bits: int = MODULATION_BITS
    embedding: str = ""

    def outputs_of(self, model: nn.Module) -> dict[str, str]:
        """The linear layer of each output -> the name of the activation before it, or ""; in module order."""
        from torch import nn

        found = {}
        for name, module in model.named_modules():
            for pattern, leaf in self.outputs:
                if isinstance(module, nn.Linear) and re.fullmatch(pattern, name):
                    found[name] = f"{name.rpartition('.')[0]}.{leaf}" if leaf else ""
        return found

    def layers_of(self, model: nn.Module) -> list[str]:
        """The linear layers that features stand for, in module order: those of the embedding, and the outputs."""
        from torch import nn

        starts = tuple(f"{part}." for part in (self.entry, self.rest) if part)
        outputs = self.outputs_of(model)
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and (name in outputs or name.startswith(starts))
        ]

    def condition(self, model: Any) -> str | None:
        """What of a model's options makes the outputs depend on more than the step; None if nothing does."""
        options = dict(model.config) | vars(model)  # an attribute is the option with its default worked out
        return next((key for key in self.others if options.get(key)), None)


def _projected(entry: str) -> Callable[[Any, Tensor], Tensor]:
    """An entry that makes sinusoids of the step and embeds them in its `timestep_embedder`."""

    def embedded(model: Any, steps: Tensor) -> Tensor:
        part: Any = model.get_submodule(entry)
        weight = part.timestep_embedder.linear_1.weight
        sinusoids: Tensor = part.time_proj(steps / part.time_proj.scale)
        made: Tensor = part.timestep_embedder(sinusoids.to(weight.dtype))
        return made

    return embedded


def _aura_flow(model: Any, steps: Tensor) -> Tensor:
    sinusoids: Tensor = model.time_step_embed(steps / model.time_step_embed.scale)
    made: Tensor = model.time_step_proj(sinusoids.to(model.time_step_proj.linear_1.weight.dtype))
    return made


def _ovis_image(model: Any, steps: Tensor) -> Tensor:
    sinusoids: Tensor = model.time_proj(steps)
    made: Tensor = model.timestep_embedder(sinusoids.to(model.timestep_embedder.linear_1.weight.dtype))
    return made


def _z_image(model: Any, steps: Tensor) -> Tensor:
    made: Tensor = model.t_embedder(steps)
    return made


def _one_for_all_blocks(entry: str, *others: str) -> Timing:
    """PixArt's way: one layer modulates every block, and the embedding itself the output; ends, at 8 bits."""
    embedding = f"{entry}.emb.timestep_embedder.linear_2"
    outputs = ((re.escape(embedding), ""), (rf"{re.escape(entry)}\.linear", "silu"))
    return Timing(entry, 1.0, "", _projected(f"{entry}.emb"), outputs, others, FIXED_BITS, embedding)


_NORM_OUT = (r"norm_out\.linear", "silu")
FLUX2 = Timing(
    "time_guidance_embed",
    1.0,
    "",
    _projected("time_guidance_embed"),
    ((r"(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear", "act_fn"), _NORM_OUT),
    ("guidance_embeds",),
)
QWEN_IMAGE = Timing(
    "time_text_embed",
    1000.0,
    "",
    _projected("time_text_embed"),
    ((r"transformer_blocks\.\d+\.(img|txt)_mod\.1", "0"), _NORM_OUT),
    ("guidance_embeds", "use_additional_t_cond", "zero_cond_t"),
)
AURA_FLOW = Timing(
    "time_step_embed",
    1000.0,
    "time_step_proj",
    _aura_flow,
    ((r"(joint|single)_transformer_blocks\.\d+\.norm1(_context)?\.linear", "silu"), _NORM_OUT),
)
Z_IMAGE = Timing(
    "t_embedder",
    1.0,
    "",
    _z_image,
    (
        (r"(noise_refiner|layers)\.\d+\.adaLN_modulation\.0", ""),
        (r"all_final_layer\.[^.]+\.adaLN_modulation\.1", "0"),
    ),
    ("siglip_feat_dim",),
)
PIXART = _one_for_all_blocks("adaln_single", "use_additional_conditions")
SANA = _one_for_all_blocks("time_embed", "guidance_embeds")
_FLUX_BLOCKS = (r"(transformer_blocks\.\d+\.norm1(_context)?|single_transformer_blocks\.\d+\.norm)\.linear", "silu")
OTHERS = {
    "LongCatImageTransformer2DModel": Timing(
        "time_embed", 1.0, "", _projected("time_embed"), (_FLUX_BLOCKS, _NORM_OUT)
    ),
    "OvisImageTransformer2DModel": Timing(
        "time_proj", 1.0, "timestep_embedder", _ovis_image, (_FLUX_BLOCKS, _NORM_OUT)
    ),
}
"""Of classes without a family of their own, by name."""
