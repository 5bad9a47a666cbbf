"""Replaces a UNet's time layers by a table of their outputs (section 4.1, Appendix C).

The time embedding and each ResBlock's projection of it depend on the time step alone. Their outputs for the
steps of a sampler are rows of one table, all blocks side by side in module order. The UNet keeps its forward:
`time_proj` looks the row up, `time_embedding` passes it on, each `time_emb_proj` takes its block's columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.diffusion.time_features import lookup  # noqa: F401  registers the operator
from bitsfusion.errors import InputError


class TimeFeatureRows(nn.Module):
    """Time step -> row. Buffers: rows [steps, channels]; steps [steps] int64, which is not part of the state dict."""

    rows: Tensor
    steps: Tensor

    def __init__(self, rows: Tensor, coverage: Coverage) -> None:
        super().__init__()
        self.coverage = coverage
        self.covered = str(coverage)
        self.register_buffer("rows", rows)
        self.register_buffer("steps", torch.tensor(coverage.steps, dtype=torch.int64), persistent=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        """[batch] time steps of any dtype -> [batch, channels] in the dtype of `rows`.

        Raises:
            InputError: a step without a row; says which samplers are covered.
        """
        found: Tensor = torch.ops.bitsfusion.time_rows(self.rows, self.steps, timesteps, self.covered)
        return found

    def extra_repr(self) -> str:
        return self.covered


class CachedLayer(nn.Module):
    """A name that a layer had: whoever wants to adapt it shall find out, not pass it over."""

    def extra_repr(self) -> str:
        """What a user reads whose adapter wants this layer: PEFT quotes the module that it cannot adapt."""
        return "no layer but cached rows: for adapters on time layers pack with the time layers kept"


class _PassOn(nn.Module):
    """Stands in for the time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = CachedLayer(), CachedLayer()

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            raise InputError("time features: got a time step condition, wanted none: it was not cached")
        return sample


class CachedProjection(CachedLayer):
    """Stands in for one block's time projection: its columns of the row."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self.start, self.width = start, width

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self.start : self.start + self.width]


def time_layers(unet: nn.Module) -> list[str]:
    """The names of the Linear layers that caching removes, in module order."""
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and (name.startswith("time_embedding.") or name.endswith(".time_emb_proj"))
    ]


def uncacheable(unet: nn.Module) -> str | None:
    """What in the UNet's config makes its time features depend on more than the time step; None if nothing does."""
    config = getattr(unet, "config", None)
    keys = ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim")
    return next((key for key in keys if getattr(config, key, None) is not None), None)


def _blocks(unet: nn.Module) -> list[tuple[str, nn.Module]]:
    """The ResBlocks with a time projection, in module order; refuses what a table of steps cannot stand for."""
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
                raise InputError(f"{name}: got a time projection in {type(module).__name__}, wanted a ResnetBlock2D")
            blocks.append((name, module))
    if not blocks or not isinstance(getattr(unet, "time_embedding", None), nn.Module):
        raise InputError(
            f"time features: got a {type(unet).__name__} without time layers, wanted a UNet not cached before"
        )
    return blocks


@torch.no_grad()
def time_feature_rows(unet: nn.Module, timesteps: Sequence[int], dtype: torch.dtype = torch.float16) -> Tensor:
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
    blocks = _blocks(unet)
    weight = next(unet.time_embedding.parameters())  # type: ignore[union-attr]
    rows = []
    for step in timesteps:
        embedded = unet.time_proj(torch.tensor([step], device=weight.device)).to(weight.dtype)  # type: ignore[operator]
        embedded = unet.time_embedding(embedded)  # type: ignore[operator]
        if getattr(unet, "time_embed_act", None) is not None:
            embedded = unet.time_embed_act(embedded)  # type: ignore[operator]
        parts = []
        for _, block in blocks:
            active = embedded if block.skip_time_act else block.nonlinearity(embedded)  # type: ignore[operator]
            parts.append(block.time_emb_proj(active))  # type: ignore[operator]
        rows.append(torch.cat(parts, dim=1))
    table = torch.cat(rows).to(dtype)
    if not bool(torch.isfinite(table).all()):
        raise InputError(
            f"time features: got values that are NaN, infinite or too large for {dtype}, wanted finite ones"
        )
    return table


def place_time_features(unet: nn.Module, rows: Tensor, coverage: Coverage) -> None:
    """Removes the time layers, in place, and puts `rows` [steps, channels] in their stead (on meta: to be loaded)."""
    blocks = _blocks(unet)
    widths = [block.time_emb_proj.out_features for _, block in blocks]  # type: ignore[union-attr]
    if tuple(rows.shape) != (len(coverage.steps), sum(widths)):  # type: ignore[arg-type]
        raise InputError(f"time features: got {list(rows.shape)}, wanted [{len(coverage.steps)}, {sum(widths)}]")  # type: ignore[arg-type]
    start = 0
    for (_, block), width in zip(blocks, widths, strict=True):
        block.time_emb_proj = CachedProjection(start, width)  # type: ignore[arg-type]
        block.skip_time_act = True  # type: ignore[assignment]
        start += width  # type: ignore[operator, assignment]
    unet.time_proj = TimeFeatureRows(rows, coverage)
    unet.time_embedding = _PassOn()
    unet.time_embed_act = None  # type: ignore[assignment]


def cache_time_features(
    unet: nn.Module, timesteps: Sequence[int] | Coverage, dtype: torch.dtype = torch.float16
) -> None:
    """Section 4.1: computes the features of `timesteps` once and drops the time layers, in place.

    Args:
        unet: a UNet2DConditionModel.
        timesteps: the steps to cover; a `Coverage` also names the samplers, for the error at other steps.
        dtype: of the rows; files hold float16.

    Raises:
        InputError: as `time_feature_rows`. Afterwards the UNet raises it for a step that is not covered.
    """
    coverage = timesteps if isinstance(timesteps, Coverage) else Coverage(tuple(timesteps))
    place_time_features(unet, time_feature_rows(unet, coverage.steps, dtype), coverage)
