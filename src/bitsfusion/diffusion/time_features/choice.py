"""How a model's time features are stored: a basis for every step, rows of some samplers, or the layers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from bitsfusion.architectures.registry import architecture_of
from bitsfusion.diffusion.samplers import Coverage, SamplerSteps, cover
from bitsfusion.diffusion.time_features.basis import TimeBasis
from bitsfusion.diffusion.time_features.cache import TimeFeatureBasis
from bitsfusion.diffusion.time_features.fit import TOLERANCE, fit_time_basis, layer_values
from bitsfusion.diffusion.time_features.layers import time_outputs_width, uncacheable
from bitsfusion.diffusion.time_features.modulation import timing_of
from bitsfusion.errors import InputError

BASIS: Literal["basis"] = "basis"
"""Features of every step as a low-rank basis; where they are not smooth, the time layers at 8 bits, with a note."""

Cover: TypeAlias = Sequence[SamplerSteps | tuple[str, int]] | Literal["basis"] | None
"""Samplers whose time features are stored exactly; `BASIS`; or None, which keeps the time layers at 8 bits."""

_TRAINED_STEPS = 1000  # of a scheduler whose config does not say


@dataclass(frozen=True)
class Choice:
    """What is stored.

    Fields:
        features: a fitted basis, the steps of exact rows, or None for the time layers at 8 bits.
        values: how many 16-bit values Appendix H counts for it; of kept layers, as many as their bits come to.
        note: in plain words, what was not done as asked.
    """

    features: TimeBasis | Coverage | None
    values: int
    note: str | None = None


def choose_features(unet: nn.Module, asked: Cover, scheduler_config: Mapping[str, Any]) -> Choice:
    """What to store of `unet`'s time features.

    Args:
        unet: a UNet2DConditionModel with its time layers (on meta it will do where no basis is asked for).
        asked: see `Cover`.
        scheduler_config: the pipeline's: its steps, and the noise schedule of the samplers.

    Raises:
        InputError: samplers that the schedule does not have, or rows of a UNet whose features depend on more than the
            step.
    """
    family = architecture_of(unet)
    modulated = family is not None and not family.timed  # a transformer, whose modulation keeps the recipe's bits
    if modulated and asked not in (None, BASIS):
        raise InputError(f"cover: got steps for a {type(unet).__name__}, wanted basis or any")
    if asked not in (None, BASIS):
        coverage = cover(asked, scheduler_config)
        return Choice(coverage, len(coverage.steps) * time_outputs_width(unet))
    placed = getattr(unet, "time_proj", None)
    if asked == BASIS and isinstance(placed, TimeFeatureBasis):
        return Choice(placed.stored, placed.stored.values)
    kept = 0 if modulated else layer_values(unet)
    stays = "modulation layers keep their bits" if modulated else "time layers stay, at 8 bits and for any sampler"
    if asked is None:
        return Choice(None, kept)
    if modulated and timing_of(unet) is None:
        return Choice(None, kept, None if family is None else family.modulation_stays)
    depends_on = uncacheable(unet)
    if depends_on is not None:
        return Choice(None, kept, f"{stays}: the model has {depends_on}, no features to store")
    fitted = fit_time_basis(unet, int(scheduler_config.get("num_train_timesteps", _TRAINED_STEPS)))
    if fitted is None:
        return Choice(None, kept, f"{stays}: features are not smooth, no basis within {TOLERANCE:g} would be smaller")
    return Choice(fitted, fitted.values)
