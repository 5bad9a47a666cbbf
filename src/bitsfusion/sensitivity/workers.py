"""Who measures candidates: this process alone, or processes elsewhere (`ray_workers`)."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from bitsfusion.data.batches import TrainingData
from bitsfusion.errors import BitsFusionError
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.paper import ImageDistance, PaperMethod, TextImageScorer
from bitsfusion.sensitivity.settings import FirstOrderOptions, NoiseErrorSettings, PaperSettings, Settings
from bitsfusion.sensitivity.table import Candidate, SensitivityRow


class Method(Protocol):
    """A measurement of single candidates; `noise_error.NoiseError` and `paper.PaperMethod` are such."""

    def measure(self, name: str, bits: int) -> dict[str, float | None]:
        """The metrics of layer `name` quantized alone to `bits`; whatever was measured before makes no difference."""
        ...


class Workers(Protocol):
    """Something that measures candidates, each once, in any order."""

    def rows(self, candidates: Sequence[Candidate]) -> Generator[SensitivityRow, None, None]:
        """The row of each candidate, as soon as it is measured.

        Raises:
            BitsFusionError: a candidate could not be measured (names the layer).
        """
        ...


class OneProcess:
    """Measures one candidate after the other, here.

    Args:
        build: makes the method; called when there is something to measure.
    """

    def __init__(self, build: Callable[[], Method]) -> None:
        self.build = build

    def rows(self, candidates: Sequence[Candidate]) -> Generator[SensitivityRow, None, None]:
        method = self.build()
        return (measured_row(method, candidate) for candidate in candidates)


def measured_row(method: Method, candidate: Candidate) -> SensitivityRow:
    """Measures one candidate and notes how long it took.

    Raises:
        BitsFusionError: a metric is not finite.
    """
    started = time.perf_counter()
    values = method.measure(candidate.layer, candidate.bits)
    for metric, value in values.items():
        if value is not None and not math.isfinite(value):
            raise BitsFusionError(
                f"{candidate.layer}: got {metric} {value} at {candidate.bits} bits, wanted a finite number"
            )
    seconds = round(time.perf_counter() - started, 4)
    return SensitivityRow.model_validate({**candidate._asdict(), **values, "seconds": seconds})


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
