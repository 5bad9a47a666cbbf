"""Time layers for a UNet that has lost them: ordinary Linear layers whose outputs are the stored features.

Readers that know nothing of stored features need the layers: a plain diffusers folder, a GGUF file. Those of the
original are lost, but any layers with the same outputs will do. SiLU(x) - SiLU(-x) = x, so that a layer
whose outputs come in pairs of opposite sign hands numbers through an activation unchanged. The embedding hands on its
sinusoids so, beside random combinations of them; the second layer the coordinates of the features in their low-rank
basis, as far as they are linear in those and in random combinations of a second kind, beside these; each projection is
fitted, by least squares over the steps, to what it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bitsfusion.diffusion.time_features.layers import timed_blocks
from bitsfusion.errors import InputError

_SEED = 0
_NEGLIGIBLE = 1e-6
_PLAIN = {
    "act_fn": "silu",
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
}
"""What the config must say, so that there is one SiLU between the two layers and one before each projection."""


@dataclass(frozen=True)
class TimeLayers:
    """Fitted layers.

    Fields:
        tensors: name in the UNet -> weight or bias, in the dtype asked for.
        error: root mean square deviation of what they compute in that dtype over the steps, relative to that of the
            features from their mean.
    """

    tensors: dict[str, Tensor]
    error: float


@torch.no_grad()
def fitted_time_layers(unet: Any, steps: Tensor, features: Tensor, dtype: torch.dtype) -> TimeLayers:
    """Layers that give `features` at `steps`, and smooth values between.

    Args:
        unet: a dense UNet2DConditionModel, on meta too: its config and shapes are looked at.
        steps: [n] time steps.
        features: [n, channels], the outputs of all time projections, in module order.
        dtype: that the layers are stored and computed in; its rounding is what the fit allows for.

    Raises:
        InputError: a UNet whose time layers are others than Stable Diffusion's.
    """
    for key, plain in _PLAIN.items():
        if (got := unet.config.get(key, plain)) != plain:
            raise InputError(f"time features: got a UNet with {key} {got!r}, wanted {plain!r}: pack with --cover any")
    noise = torch.finfo(dtype).eps / 2
    sinusoids = unet.time_proj(steps.float()).double()
    first = _first_layer(sinusoids.shape[1], unet.time_embedding.linear_1.out_features)
    hidden = functional.silu(sinusoids @ first.T)

    wanted = features.double()
    mean = wanted.mean(0)
    left, sizes, _ = torch.linalg.svd(wanted - mean, full_matrices=False)
    outputs = unet.time_embedding.linear_2.out_features
    rank = min(outputs // 4, int((sizes > _NEGLIGIBLE * sizes[0]).sum()))
    coordinates = left[:, :rank] / left[:, :rank].abs().amax(0)
    skips = all(bool(block.skip_time_act) for _, block in timed_blocks(unet))
    act: Callable[[Tensor], Tensor] = (lambda inputs: inputs) if skips else functional.silu
    more = _random(outputs - 2 * rank, len(first))
    both, offset = _ridge(torch.cat([hidden, act(hidden @ more.T)], dim=1), coordinates, noise)
    second = torch.cat([both[: len(first)].T, -both[: len(first)].T, more])
    offset = torch.cat([offset, -offset, more.new_zeros(len(more))])
    acted = act(hidden @ second.T + offset)
    # The two of a pair are one number, whose rounding does not grow.
    numbers = torch.cat([acted[:, :rank] - acted[:, rank : 2 * rank], acted[:, 2 * rank :]], dim=1)
    last, offsets = _ridge(numbers, wanted, noise)
    last = torch.cat([last[:rank], -last[:rank], last[rank:]]).T

    made = {
        "time_embedding.linear_1.weight": first,
        "time_embedding.linear_1.bias": first.new_zeros(len(first)),
        "time_embedding.linear_2.weight": second,
        "time_embedding.linear_2.bias": offset,
    }
    start = 0
    for name, block in timed_blocks(unet):
        columns = slice(start, start + int(block.time_emb_proj.out_features))  # type: ignore[union-attr, arg-type]
        made[f"{name}.time_emb_proj.weight"], made[f"{name}.time_emb_proj.bias"] = last[columns], offsets[columns]
        start = columns.stop
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in made.items()}
    outcome = _outputs(unet, tensors, sinusoids.to(dtype))
    error = (outcome.double() - wanted).norm() / (wanted - mean).norm().clamp(min=1e-12)
    return TimeLayers(tensors, float(error))


def _first_layer(inputs: int, outputs: int) -> Tensor:
    """[outputs, inputs] float64: every sinusoid in both signs, then random combinations of them."""
    both = torch.eye(inputs, dtype=torch.float64)
    return torch.cat([both, -both, _random(max(0, outputs - 2 * inputs), inputs)])[:outputs]


def _random(outputs: int, inputs: int) -> Tensor:
    """[outputs, inputs] float64, Gaussian, always the same."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(outputs, inputs, generator=generator).double() / inputs**0.5


def _ridge(inputs: Tensor, outputs: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Weights [in, out] and offsets [out] of least error, where every input and weight is rounded by `noise`."""
    centre, middle = inputs.mean(0), outputs.mean(0)
    centred = inputs - centre
    penalty = torch.diag(inputs.square().sum(0)) * noise**2
    weights = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (outputs - middle))
    return weights, middle - centre @ weights


def _outputs(unet: Any, tensors: dict[str, Tensor], sinusoids: Tensor) -> Tensor:
    """What the layers give, computed in their own dtype."""

    def layer(name: str, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    hidden = functional.silu(layer("time_embedding.linear_1", sinusoids))
    embedded = layer("time_embedding.linear_2", hidden)
    blocks = timed_blocks(unet)
    acted = [embedded if block.skip_time_act else functional.silu(embedded) for _, block in blocks]
    return torch.cat([layer(f"{name}.time_emb_proj", each) for (name, _), each in zip(blocks, acted, strict=True)], 1)
