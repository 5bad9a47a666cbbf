"""The one place where a denoiser is called: with samples and conditioning, or as a pipeline has called it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.registry import DENOISER_COMPONENTS, denoiser_of
from bitsfusion.errors import InputError


def denoise(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """What a model predicts (noise, v or velocity); with gradients unless switched off outside.

    Args:
        model: a denoiser of a known family, dense, fake-quantized or packed, or wrapped for several devices.
        noisy: z_t, [n, c, h, w], in the dtype that the model computes in.
        timesteps: t, [n], as the pipeline's scheduler counts them.
        conditioning: n rows.

    Returns:
        [n, c, h, w].

    Raises:
        InputError: a model of no known family.
    """
    return denoiser_of(model).predict(model, noisy, timesteps, conditioning)


def denoise_as(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The output of a model called as a pipeline once called it; with gradients unless switched off outside."""
    return model(*args, **kwargs)


def pipeline_denoiser(pipeline: Any) -> Any:
    """The component of a pipeline in memory that is called once a step.

    Raises:
        InputError: it has none that is known.
    """
    for component in DENOISER_COMPONENTS:
        model = getattr(pipeline, component, None)
        if isinstance(model, nn.Module):
            return model
    wanted = " or ".join(DENOISER_COMPONENTS)
    raise InputError(f"{type(pipeline).__name__}: got no denoiser, wanted a component {wanted}")


def with_denoiser(pipeline: Any, model: nn.Module) -> Any:
    """The pipeline with `model`, put where the pipeline is, in its denoiser's place; it shares all else with it."""
    other = copy.copy(pipeline)
    other.register_modules(**{denoiser_of(model).component: model.to(pipeline.device)})
    return other
