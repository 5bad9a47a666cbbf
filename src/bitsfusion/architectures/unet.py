"""diffusers' UNet2DConditionModel: Stable Diffusion 1 and 2, SDXL and their fine-tunes (sections 3.2 and 4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitsfusion.architectures.base import Denoiser
from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.shapes import Shapes
from bitsfusion.architectures.unet_shapes import unet_shapes
from bitsfusion.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_ENDS = ("conv_in", "conv_out")
_TIME = re.compile(r"(^time_embedding\.)|(\.time_emb_proj$)")
_CONDITION = re.compile(r"^(add_embedding|class_embedding|encoder_hid_proj)(\.|$)")
_KINDS = (
    (re.compile(r"^conv_(in|out)$"), "first and last"),
    (re.compile(r"\.conv_shortcut$"), "shortcut"),
    (re.compile(r"\.resnets\.\d+\.conv\d$"), "ResBlock convolution"),
    (re.compile(r"\.(down|up)samplers\."), "resampling"),
    (re.compile(r"\.attn1\."), "self-attention"),
    (re.compile(r"\.attn2\."), "cross-attention"),
    (re.compile(r"\.ff\."), "feed-forward"),
    (_TIME, "time"),
    (_CONDITION, "conditioning"),
)
_PARTS = ("down_blocks", "mid_block", "up_blocks")
_UNITS = ("ResnetBlock2D", "BasicTransformerBlock")
_OTHER_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


@dataclass(frozen=True)
class UNet(Denoiser):
    """Convolutional blocks down and up, with cross-attention to the text."""

    @property
    def timed(self) -> bool:
        return True

    def role(self, name: str) -> LayerRole:
        if name in _ENDS:
            return LayerRole.FIRST_LAST
        if _CONDITION.search(name):
            return LayerRole.CONDITION
        return LayerRole.TIME if _TIME.search(name) else LayerRole.QUANTIZED

    def kind(self, name: str) -> str:
        return next((kind for pattern, kind in _KINDS if pattern.search(name)), "projection")

    def feature_values(self, name: str, out_channels: int) -> int:
        """Each ResBlock's projected time feature (Appendix C)."""
        return out_channels if name.endswith(".time_emb_proj") else 0

    def _shapes(self, config: Mapping[str, Any]) -> Shapes:
        return unet_shapes(config)

    def predict(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = model(noisy, timesteps, **conditioning.keywords(), return_dict=False)[0]
        return output

    def feature_blocks(self, model: nn.Module) -> list[nn.Module]:
        """The Down and Up blocks; a Down block returns its output and skip connections, an Up block its output."""
        return [*model.down_blocks, *model.up_blocks]  # type: ignore[misc]

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """Its blocks, and the ResBlocks, attentions and samplers in them."""
        return {
            name: module for name, module in model.named_modules() if name.startswith(_PARTS) and _is_stage(model, name)
        }

    def units(self, model: nn.Module) -> list[nn.Module]:
        """ResBlocks and transformer blocks."""
        return [module for module in model.modules() if type(module).__name__ in _UNITS]

    def example(
        self, config: Mapping[str, Any], batch: int, latent: int, tokens: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Conditioning]:
        """With SDXL's pooled text and sizes, and LCM's embedded guidance, where the config asks for them."""
        asked = [name for name in _OTHER_CONDITIONS if config.get(name) is not None]
        if config.get("addition_embed_type") not in (None, "text_time"):
            asked.append("addition_embed_type")
        if asked or not isinstance(config.get("cross_attention_dim"), int):
            what = asked[0] if asked else "cross_attention_dim"
            raise InputError(
                f"unet: got {what} {config.get(what)!r}, wanted a UNet that is given a text, sizes and a step alone"
            )
        import torch

        sample = torch.randn(batch, config["in_channels"], latent, latent, generator=generator)
        text = torch.randn(batch, tokens, config["cross_attention_dim"], generator=generator)
        tensors = {"encoder_hidden_states": text}
        if width := config.get("time_cond_proj_dim"):
            tensors["timestep_cond"] = torch.randn(batch, width, generator=generator)
        if config.get("addition_embed_type") == "text_time":
            width = config["addition_time_embed_dim"]
            given = config["projection_class_embeddings_input_dim"]
            # The refiner has one text encoder, whose width is its pooled text's; it is told a score in place of a size.
            numbers = 5 if given - 5 * width == config["cross_attention_dim"] else 6
            pooled = given - numbers * width
            side = 8.0 * latent
            ids = [side, side, 0.0, 0.0, 6.0] if numbers == 5 else [side, side, 0.0, 0.0, side, side]
            tensors["added_cond_kwargs.text_embeds"] = torch.randn(batch, pooled, generator=generator)
            tensors["added_cond_kwargs.time_ids"] = torch.tensor([ids]).expand(batch, numbers).contiguous()
        return sample, Conditioning(tensors)


def _is_stage(model: nn.Module, name: str) -> bool:
    """Whether `name` is a block, such as `up_blocks.1`, or an item of its lists, such as `up_blocks.1.resnets.0`."""
    from torch import nn

    parts = name.split(".")
    depth = len(parts) - (1 if parts[0] == "mid_block" else 2)
    if depth == 0:
        return True
    return depth == 2 and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.ModuleList)


UNET = UNet("UNet2DConditionModel", "UNet", "diffusers", "unet", ("Linear", "Conv2d"))
