"""What a sensitivity measurement is asked to do; saved whole in its table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.diffusion.samplers import Sampler
from bitsfusion.io.schema import Checked
from bitsfusion.numerics import ScaleInit

Positive = Annotated[int, Field(ge=1)]


class NoiseErrorSettings(Checked):
    """The cheap measurement: no training, no images; the error of the predicted noise.

    Differs from the paper, which trains each candidate and compares images (`PaperSettings`).
    """

    method: Literal["noise_error"] = "noise_error"
    seed: int = Field(0, ge=0)
    samples: Positive = 64
    """Noisy latents, their time steps spread evenly over the noise schedule."""
    batch_size: Positive = 64
    guidance: float = 1.0
    """Above 1 the error is that of the guided noise, as a sampler with this guidance sees it."""
    scale_init: ScaleInit = ScaleInit.EXACT
    reuse_activations: bool = True
    """Keep what runs before a layer instead of computing it again: the same numbers, sooner, for more memory."""


class FirstOrderOptions(Checked):
    """The cheapest measurements: the noise error to first order, of all candidates at once.

    They differ from the paper, which trains each candidate and compares images (`PaperSettings`).
    """

    seed: int = Field(0, ge=0)
    samples: Positive = 64
    """Noisy latents, their time steps spread evenly over the noise schedule; one random direction each."""
    batch_size: Positive = 16
    guidance: float = 7.5
    """Above 1 the error is that of the guided noise, as a sampler with this guidance sees it."""


class JacobianSettings(FirstOrderOptions):
    """Of layers rounded by their weights alone."""

    method: Literal["jacobian"] = "jacobian"
    scale_init: ScaleInit = ScaleInit.EXACT


class CalibratedSettings(FirstOrderOptions):
    """Of layers calibrated each by itself: what is left where a calibration follows (`calibration.alone`)."""

    method: Literal["calibrated"] = "calibrated"
    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Of the calibration's trajectories."""
    calibration: CalibrationSettings = CalibrationSettings()


class PaperOptions(Checked):
    """The paper's measurement (section 3.2, Appendix B): each candidate trained, then compared by its images.

    The paper publishes neither T nor the other training settings.
    """

    method: Literal["paper"] = "paper"
    seed: int = Field(0, ge=0)
    scale_init: ScaleInit = ScaleInit.ALTERNATING
    iterations: int = Field(100, ge=0)
    """T, training steps of each candidate."""
    train_batch_size: Positive = 32
    learning_rate: float = Field(1e-5, gt=0)
    first_image_seed: int = Field(1024, ge=0)
    """Image k has this seed plus k."""
    sampler: Sampler = Sampler.PNDM
    steps: Positive = 50
    guidance: float = 7.5
    image_batch_size: Positive = 16


class PaperSettings(PaperOptions):
    """The paper's measurement with its prompts; the paper's K is 100 PartiPrompts."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    """K prompts, one image each."""


Settings = NoiseErrorSettings | JacobianSettings | CalibratedSettings | PaperSettings
