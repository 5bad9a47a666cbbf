"""What a UNet's time step alone decides: which layers, and their outputs at given steps (section 4.1, Appendix C)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.diffusion.time_features.modulation import condition_of, modulation_outputs, timing_of
from bitsfusion.errors import InputError


def time_layers(unet: nn.Module) -> list[str]:
    """The names of the Linear layers that caching removes, in module order."""
    timing = timing_of(unet)
    if timing is not None:
        return timing.layers_of(unet)
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and (name.startswith("time_embedding.") or name.endswith(".time_emb_proj"))
    ]


def uncacheable(unet: nn.Module) -> str | None:
    """What in the UNet's config makes its time features depend on more than the time step; None if nothing does."""
    timing = timing_of(unet)
    if timing is not None:
        return condition_of(unet, timing)
    config = getattr(unet, "config", None)
    keys = ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim")
    return next((key for key in keys if getattr(config, key, None) is not None), None)


def timed_blocks(unet: nn.Module) -> list[tuple[str, nn.Module]]:
    """The ResBlocks with a time projection, in module order; refuses features that depend on more than the step."""
    key = uncacheable(unet)
    if key is not None:
        raise InputError(
            f"time features: got a UNet with {key}, so that they depend on more than the step; "
            "keep the time layers at 8 bits instead"
        )
    blocks = []
    for name, module in unet.named_modules():
        if isinstance(getattr(module, "time_emb_proj", None), nn.Linear):
            if not hasattr(module, "skip_time_act"):
                raise InputError(f"{name}: got a time projection in {type(module).__name__}, wanted a ResBlock")
            blocks.append((name, module))
    if not blocks or not isinstance(getattr(unet, "time_embedding", None), nn.Module):
        raise InputError(
            f"time features: got a {type(unet).__name__} without time layers, wanted a UNet not cached before"
        )
    return blocks


def time_outputs_width(unet: nn.Module) -> int:
    """Values of one step: the widths of all time projections together (Appendix C)."""
    timing = timing_of(unet)
    if timing is not None:
        names = list(timing.outputs_of(unet))
    else:
        names = [name for name in time_layers(unet) if name.endswith(".time_emb_proj")]
    projections: list[Any] = [unet.get_submodule(name) for name in names]
    return sum(int(layer.out_features) for layer in projections)


@torch.no_grad()
def time_outputs(unet: nn.Module, timesteps: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the time step alone decides, output by output, in module order.

    Args:
        unet: a UNet2DConditionModel with its time layers.
        timesteps: [n] of any real dtype.

    Yields:
        the name of a time projection, its outputs [n, width] in the layers' own dtype and on their device.

    Raises:
        InputError: not a UNet whose features depend on the step alone.
    """
    timing = timing_of(unet)
    if timing is not None:
        yield from modulation_outputs(unet, timing, timesteps)
        return
    blocks = timed_blocks(unet)
    weight = next(unet.time_embedding.parameters())  # type: ignore[union-attr]
    embedded = unet.time_proj(timesteps.to(weight.device)).to(weight.dtype)  # type: ignore[operator]
    embedded = unet.time_embedding(embedded)  # type: ignore[operator]
    if getattr(unet, "time_embed_act", None) is not None:
        embedded = unet.time_embed_act(embedded)  # type: ignore[operator]
    for name, block in blocks:
        active = embedded if block.skip_time_act else block.nonlinearity(embedded)  # type: ignore[operator]
        yield f"{name}.time_emb_proj", block.time_emb_proj(active)  # type: ignore[operator]


@torch.no_grad()
def time_feature_rows(unet: nn.Module, timesteps: Sequence[float], dtype: torch.dtype = torch.float16) -> Tensor:
    """Each ResBlock's projected time feature at each step, the blocks side by side in module order.

    Args:
        unet: a UNet2DConditionModel with its time layers.
        timesteps: the rows' steps.
        dtype: of the result; the layers compute in their own.

    Returns:
        [len(timesteps), sum of the projections' widths].

    Raises:
        InputError: not a UNet whose features depend on the step alone, or features beyond float16.
    """
    # One step at a time: in a batch the layers may round otherwise.
    rows = [torch.cat([part for _, part in time_outputs(unet, torch.tensor([step]))], dim=1) for step in timesteps]
    table = torch.cat(rows).to(dtype)
    if not bool(torch.isfinite(table).all()):
        raise InputError(
            f"time features: got values that are NaN, infinite or too large for {dtype}, wanted finite ones"
        )
    return table
