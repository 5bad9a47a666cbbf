"""The models of a pipeline as ONNX sees them: plain modules of tensors, traced with a free batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 21
"""The first with integers of four bits."""
_BATCH = {0: "batch"}


class TextEncoder(nn.Module):
    """Token ids [batch, length] to states [batch, length, width]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids, return_dict=False)[0]
        return hidden


class MaskedTextEncoder(nn.Module):
    """The same of tokens that an attention mask [batch, length] of 0 and 1 names; states of the others are 0."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids, attention_mask, return_dict=False)[0]
        return hidden * attention_mask.unsqueeze(-1)


class Decoder(nn.Module):
    """Latents to a picture [batch, 3, height, width] from -1 to 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        image: Tensor = self.model.decode(latents, return_dict=False)[0]
        return image


class TimedUNet(nn.Module):
    """A UNet with its time layers: a time step [batch] is its second input."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        prediction: Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return prediction


class TimedTransformer(nn.Module):
    """An AuraFlow as `TimedUNet`: its time step [batch] counts from 0 to 1000 as schedulers do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        level = timestep / 1000
        prediction: Tensor = self.model(sample, encoder_hidden_states, level, return_dict=False)[0]
        return prediction


@torch.no_grad()
def traced(
    wrapped: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str] = ("output",), shapes: Any = None
) -> Any:
    """A model as torch's ONNXProgram, not optimized; weights are initializers called `model.NAME`.

    Args:
        wrapped: one of the classes above, or another that keeps its model as `model`.
        inputs: by name, in the forward's order, two samples each or more.
        outputs: names of what the forward returns.
        shapes: which sizes are free, as torch.export's `dynamic_shapes`; by default the first of every input.
    """
    program = torch.onnx.export(
        wrapped.eval(),
        tuple(inputs.values()),
        dynamo=True,
        opset_version=OPSET,
        optimize=False,
        verbose=False,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=tuple(_BATCH for _ in inputs) if shapes is None else shapes,
    )
    assert program is not None
    return program
