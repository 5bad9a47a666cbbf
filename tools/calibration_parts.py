"""A calibration with one of its parts left out, for `calibrated_starts.py --without`: what each is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from bitsfusion.calibration.layer import CalibratedLayer, calibrated_layer
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.numerics import quantize

NOTHING = "nothing"
_SOLVER, _WALK = "bitsfusion.calibration.layer", "bitsfusion.calibration.calibrate"


def _nearest(target: Any, factor: Any, scale: Any, bits: int) -> Any:
    return quantize(target, scale, bits).to(target.dtype)


def _own_scale(target: Any, factor: Any, start: Any, bits: int) -> Any:
    return start


def _unfitted(codes: Any, aimed: Any, through: Any, scale: Any) -> Any:
    return scale.float()


def _own_bias(name: str, layer: Any, *rest: Any) -> CalibratedLayer:
    bias = None if layer.bias is None else layer.bias.detach().float().cpu()
    return dataclasses.replace(calibrated_layer(name, layer, *rest), bias=bias)


_SETTINGS: dict[str, dict[str, Any]] = {
    "descent": {"sweeps": 0},
    "columns and descent": {"sweeps": 0},
    "columns, descent and scales by output": {"sweeps": 0},
    "guided rows": {"guided_rows": False},
}

_PATCHES: dict[str, dict[str, Any]] = {
    "scale search": {f"{_SOLVER}.scale_by_output": _own_scale},
    "columns": {f"{_SOLVER}.codes_by_columns": _nearest},
    "columns and descent": {f"{_SOLVER}.codes_by_columns": _nearest},
    "columns, descent and scales by output": {
        f"{_SOLVER}.codes_by_columns": _nearest,
        f"{_SOLVER}.scale_by_output": _own_scale,
        "bitsfusion.calibration.codes.fitted_scale": _unfitted,
    },
    "biases": {f"{_WALK}.calibrated_layer": _own_bias},
    "quantized inputs": {f"{_WALK}._put": lambda *_: None},  # every layer sees the original's inputs
}

PARTS = (NOTHING, *dict.fromkeys([*_SETTINGS, *_PATCHES]))


def settings_without(part: str, settings: CalibrationSettings) -> CalibrationSettings:
    """The settings, where the part is a matter of them."""
    return settings.model_copy(update=_SETTINGS.get(part, {}))


@contextmanager
def without(part: str) -> Iterator[None]:
    """Inside, the calibration does without the part."""
    with ExitStack() as stack:
        for name, value in _PATCHES.get(part, {}).items():
            stack.enter_context(patch(name, value))
        yield
