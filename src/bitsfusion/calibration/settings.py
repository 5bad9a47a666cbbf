"""What a calibration depends on beside the model and its bits."""

from __future__ import annotations

from pydantic import Field

from bitsfusion.io.schema import Checked


class CalibrationSettings(Checked):
    """How much is sampled, and how the layers are solved."""

    samples: int = Field(48, ge=1)
    """Pictures drawn by the original; prompts are repeated, with other noise, where there are fewer."""
    steps: int = Field(10, ge=1)
    """Sampler steps of each; the denoiser's inputs of every step count."""
    guidance: float = 7.5
    seed: int = Field(50_000, ge=0)
    """Seeds the first picture's noise; the next ones count on."""
    size: int | None = Field(None, ge=1)
    """Height and width of the latents; null: the model's own."""
    batch_size: int | None = Field(None, ge=1)
    """Pictures drawn together; null: up to 24, fewer the larger their latents are."""
    rows: int = Field(32_768, ge=1)
    """Input vectors of a layer that are looked at, at most, spread evenly over all calls."""
    guided_rows: bool = True
    """Also look at the mixtures that guidance makes of its two halves: see `moments.with_guided`."""
    damping: float = Field(0.03, gt=0)
    """Added to the diagonal of the second moments, in units of its mean."""
    sweeps: int = Field(2, ge=0)
    """Rounds of refitted scales and coordinate descent over the codes after they were found column by column."""
