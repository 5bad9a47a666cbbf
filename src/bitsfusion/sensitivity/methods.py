"""From settings to the measurement they ask for."""

from __future__ import annotations

import functools
from typing import Any

from bitsfusion.data.batches import TrainingData
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.paper import ImageDistance, PaperMethod, TextImageScorer
from bitsfusion.sensitivity.settings import FirstOrderOptions, NoiseErrorSettings, PaperSettings, Settings
from bitsfusion.sensitivity.workers import Method, OneProcess, Workers


def build_method(
    pipeline: Any,
    settings: NoiseErrorSettings | PaperSettings,
    data: TrainingData,
    scorer: TextImageScorer | None = None,
    lpips: ImageDistance | None = None,
) -> Method:
    """Builds the measurement of single candidates that `settings` ask for; computes what all candidates share."""
    if isinstance(settings, PaperSettings):
        return PaperMethod(pipeline, settings, data, scorer, lpips)
    return NoiseError(pipeline, settings, data)


def one_process(
    pipeline: Any,
    settings: Settings,
    data: TrainingData,
    scorer: TextImageScorer | None = None,
    lpips: ImageDistance | None = None,
) -> Workers:
    """Measures in this process."""
    if isinstance(settings, FirstOrderOptions):
        return Jacobian(pipeline, settings, data)
    return OneProcess(functools.partial(build_method, pipeline, settings, data, scorer, lpips))
