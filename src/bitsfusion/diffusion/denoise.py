"""The one place where a denoiser is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.registry import DENOISERS, denoiser_of
from bitsfusion.errors import InputError

DENOISER_COMPONENTS = tuple(dict.fromkeys(made.component for made in DENOISERS.values()))
"""Names of the components of a pipeline that may be a denoiser."""


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


def denoiser_component(pipeline: Any) -> str:
    """The name of the same component: "unet", "transformer"."""
    model = pipeline_denoiser(pipeline)
    return next(name for name in DENOISER_COMPONENTS if getattr(pipeline, name, None) is model)


def with_denoiser(pipeline: Any, model: nn.Module) -> Any:
    """A pipeline of the same class and components around another denoiser, without a safety checker."""
    kind = type(pipeline)
    changes: dict[str, Any] = {denoiser_component_of(model): model}
    components = pipeline.components
    if "safety_checker" in components:
        changes |= {"safety_checker": None, "requires_safety_checker": False}
    options = {name: pipeline.config[name] for name in kind._get_signature_keys(kind)[1] if name in pipeline.config}
    made = kind(**{**options, **components, **changes})
    made.set_progress_bar_config(disable=True)
    return made


def denoiser_component_of(model: nn.Module) -> str:
    """The name of a pipeline's component that models of this family are."""
    return denoiser_of(model).component
