"""Replaces a UNet's time layers by their outputs: rows for the steps of some samplers, or a basis for every step.

The time embedding and each ResBlock's projection of it depend on the time step alone (section 4.1, Appendix C). Their
outputs stand side by side, all blocks in module order. The UNet keeps its forward: `time_proj` gives the values of a
step, `time_embedding` passes them on, each `time_emb_proj` takes its block's columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitsfusion.architectures.timing import Timing
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.diffusion.time_features.basis import TimeBasis, basis_features
from bitsfusion.diffusion.time_features.layers import time_feature_rows, timed_blocks
from bitsfusion.diffusion.time_features.lookup import step_bits
from bitsfusion.diffusion.time_features.modulation import Steps, timing_of
from bitsfusion.diffusion.time_features.schedule import schedule_is_good
from bitsfusion.errors import InputError
from bitsfusion.nn.replace import replace_module


class TimeFeatureRows(nn.Module):
    """Time step -> row. Buffers: rows [steps, channels]; steps [steps] int32, which is not part of the state dict.

    Fields:
        coverage: the steps of the rows.
    """

    rows: Tensor
    steps: Tensor

    def __init__(self, rows: Tensor, coverage: Coverage) -> None:
        super().__init__()
        self.coverage = coverage
        self.covered = str(coverage)
        self.register_buffer("rows", rows)
        steps = step_bits(torch.tensor(coverage.steps, dtype=torch.float32))
        self.register_buffer("steps", steps, persistent=False)

    @property
    def channels(self) -> int:
        """Values of one step."""
        return int(self.rows.shape[1])

    def forward(self, timesteps: Tensor) -> Tensor:
        """[batch] time steps of any dtype -> [batch, channels] in the dtype of `rows`.

        Raises:
            InputError: a step without a row; says which samplers are covered.
        """
        found: Tensor = torch.ops.bitsfusion.time_rows(self.rows, self.steps, timesteps, self.covered)
        return found

    def extra_repr(self) -> str:
        return self.covered


class TimeFeatureBasis(nn.Module):
    """Any time step -> features. Buffers: mean [channels], basis [rank, channels], curve [points, rank].

    Fields:
        knots, error: see `TimeBasis`.
    """

    mean: Tensor
    basis: Tensor
    curve: Tensor

    def __init__(self, basis: TimeBasis) -> None:
        super().__init__()
        self.knots, self.error, self.covered = basis.knots, basis.error, str(basis)
        for name, tensor in basis.tensors().items():
            self.register_buffer(name, tensor)

    @property
    def channels(self) -> int:
        """Values of one step."""
        return int(self.basis.shape[1])

    @property
    def stored(self) -> TimeBasis:
        """The basis in float16, as it is stored."""
        mean, basis, curve = (tensor.to("cpu", torch.float16) for tensor in (self.mean, self.basis, self.curve))
        return TimeBasis(mean, basis, curve, self.knots, self.error)

    def forward(self, timesteps: Tensor) -> Tensor:
        """[batch] time steps of any real dtype -> [batch, channels] in the dtype of `basis`.

        Plain operations without a look at values: whole under `torch.compile`, where a step beyond the knots gives NaN.

        Raises:
            InputError: a step beyond the knots; says which are covered.
        """
        if not torch.compiler.is_compiling() and not schedule_is_good(timesteps, self.curve, self._inside):
            step = float(timesteps[~self._inside(timesteps)][0])
            raise InputError(
                f"time step {step:.10g}: this model covers {self.covered}; use these, or pack with --cover any"
            )
        return basis_features(self.mean, self.basis, self.curve, timesteps, self.knots)

    def _inside(self, timesteps: Tensor) -> Tensor:
        return (timesteps >= self.knots.start) & (timesteps <= self.knots.end)

    def extra_repr(self) -> str:
        return f"{self.covered}, rank {len(self.basis)}"


class CachedLayer(nn.Module):
    """Keeps the name of a removed layer, so that an adapter for it fails instead of being ignored."""

    def extra_repr(self) -> str:
        """What a user reads whose adapter wants this layer: PEFT quotes the module that it cannot adapt."""
        return "no layer but cached values: for adapters on time layers pack with them kept (--cover any)"


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


def place_time_features(unet: nn.Module, features: TimeFeatureRows | TimeFeatureBasis) -> None:
    """Removes the time layers, in place, and puts `features` in their stead (on meta: to be loaded).

    Raises:
        InputError: as many values as the UNet's time layers do not have, or no such layers.
    """
    timing = timing_of(unet)
    if timing is not None:
        _place_in_transformer(unet, timing, features)
        return
    blocks = timed_blocks(unet)
    widths = [int(block.time_emb_proj.out_features) for _, block in blocks]  # type: ignore[arg-type, union-attr]
    if features.channels != sum(widths):
        raise InputError(f"time features: got {features.channels} values a step, wanted {sum(widths)}")
    start = 0
    for (_, block), width in zip(blocks, widths, strict=True):
        block.time_emb_proj = CachedProjection(start, width)
        block.skip_time_act = True  # type: ignore[assignment]
        start += width
    unet.time_proj = features
    unet.time_embedding = _PassOn()
    unet.time_embed_act = None  # type: ignore[assignment]


def _place_in_transformer(model: nn.Module, timing: Timing, features: TimeFeatureRows | TimeFeatureBasis) -> None:
    outputs = timing.outputs_of(model)
    widths = {name: int(model.get_submodule(name).out_features) for name in outputs}  # type: ignore[arg-type]
    if features.channels != sum(widths.values()):
        raise InputError(f"time features: got {features.channels} values a step, wanted {sum(widths.values())}")
    model.time_proj = features
    if timing.embedding:
        replace_module(model, timing.entry, Steps(features, timing.scale, widths[timing.embedding]))
        return
    start = 0
    for name, activation in outputs.items():
        replace_module(model, name, CachedProjection(start, widths[name]))
        start += widths[name]
        if activation:
            replace_module(model, activation, nn.Identity())
    if timing.entry != "time_proj":
        replace_module(model, timing.entry, Steps(features, timing.scale))
    if timing.rest:
        replace_module(model, timing.rest, nn.Identity())


def cache_time_features(
    unet: nn.Module, features: Sequence[float] | Coverage | TimeBasis, dtype: torch.dtype = torch.float16
) -> None:
    """Section 4.1: computes the features once and drops the time layers, in place.

    Args:
        unet: a UNet2DConditionModel.
        features: the steps to cover; a `Coverage` also names the samplers, for the error at other steps. Or a basis
            that was fitted to this UNet, for every step.
        dtype: of the values; files hold float16.

    Raises:
        InputError: as `time_feature_rows`. Afterwards the UNet raises it for a step that is not covered.
    """
    if isinstance(features, TimeBasis):
        placed: TimeFeatureRows | TimeFeatureBasis = TimeFeatureBasis(features).to(dtype)
    else:
        coverage = features if isinstance(features, Coverage) else Coverage(tuple(features))
        placed = TimeFeatureRows(time_feature_rows(unet, coverage.steps, dtype), coverage)
    place_time_features(unet, placed)
