"""What a measurement costs in latents through the denoiser, counted, not timed (`plan` times)."""

from __future__ import annotations

from bitsfusion.diffusion.samplers import Sampler
from bitsfusion.sensitivity.settings import FirstOrderOptions, NoiseErrorSettings, PaperOptions
from bitsfusion.sensitivity.table import MEASURED_BITS


def forward_passes(
    settings: NoiseErrorSettings | FirstOrderOptions | PaperOptions, candidates: int, images: int = 0
) -> int:
    """Latents through the denoiser for `candidates`, a guided pair counted as two.

    A backward pass counts as one more where it is of activations alone, and as two more where it is of weights too.
    What `noise_error` need not compute again is counted all the same; the calibration behind `calibrated` is not.

    Args:
        settings: of the measurement.
        candidates: layers times bit widths.
        images: of each candidate, of the paper's method.
    """
    pairs = 2 if settings.guidance > 1 else 1
    if isinstance(settings, PaperOptions):
        evaluations = settings.steps + (settings.sampler is Sampler.PNDM)  # PNDM asks once more than it has steps
        training = settings.iterations * settings.train_batch_size
        drawing = images * evaluations * pairs
        return training + drawing + candidates * (3 * training + drawing)  # first what all candidates share
    if isinstance(settings, FirstOrderOptions):
        return settings.samples * pairs * (2 + len(MEASURED_BITS))
    return (candidates + 1) * settings.samples * pairs
