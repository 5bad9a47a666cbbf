"""The fixed inputs that every method runs on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitsfusion.errors import InputError

TEXT_TOKENS = 77
_OTHER_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")


@dataclass(frozen=True)
class ForwardInputs:
    """One batch for a UNet2DConditionModel.

    Fields:
        sample: [batch, in_channels, latent, latent], Gaussian.
        timestep: a scalar.
        encoder_hidden_states: [batch, 77, cross_attention_dim], Gaussian.
        added: SDXL's `text_embeds` [batch, pooled] and `time_ids` [batch, 6]; empty for other models.
    """

    sample: Tensor
    timestep: Tensor
    encoder_hidden_states: Tensor
    added: dict[str, Tensor]

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments of the UNet's forward, in `dtype`."""
        arguments: dict[str, Any] = {
            "sample": self.sample.to(dtype),
            "timestep": self.timestep,
            "encoder_hidden_states": self.encoder_hidden_states.to(dtype),
        }
        if self.added:
            arguments["added_cond_kwargs"] = {name: tensor.to(dtype) for name, tensor in self.added.items()}
        return arguments

    def sha256(self) -> str:
        """Over all values, in hex."""
        digest = hashlib.sha256()
        for tensor in (self.sample, self.timestep, self.encoder_hidden_states, *self.added.values()):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def forward_inputs(config: Mapping[str, Any], *, step: int, batch: int, latent: int) -> ForwardInputs:
    """The same float32 inputs for the same arguments, on any machine.

    Args:
        config: of the UNet.
        step: the time step.
        batch, latent: of the sample, `latent` being its height and width.

    Raises:
        InputError: a UNet that asks for more than a text and, like SDXL, a pooled text and sizes.
    """
    asked = [name for name in _OTHER_CONDITIONS if config.get(name) is not None]
    if config.get("addition_embed_type") not in (None, "text_time"):
        asked.append("addition_embed_type")
    if asked or not isinstance(config.get("cross_attention_dim"), int):
        what = asked[0] if asked else "cross_attention_dim"
        raise InputError(f"unet: got {what} {config.get(what)!r}, wanted a UNet that is given a text and a step alone")
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, config["in_channels"], latent, latent, generator=generator)
    text = torch.randn(batch, TEXT_TOKENS, config["cross_attention_dim"], generator=generator)
    added = {}
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        side = 8.0 * latent
        added = {
            "text_embeds": torch.randn(batch, pooled, generator=generator),
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]]).expand(batch, 6).contiguous(),
        }
    return ForwardInputs(sample, torch.tensor(step), text, added)
