"""Tables 5, 6 and 7: one choice of the method at a time, after Stage I."""

from __future__ import annotations

from dataclasses import replace

from bitsfusion.training.config import TimeStepConfig
from bitsfusion_lab.reproduction.ladder import TIME_SAMPLING
from bitsfusion_lab.reproduction.table import Row, Table

_PUBLISHED_ETA = {0.0: 0.3155, 0.1: 0.3173, 0.2: 0.3162, 0.3: 0.3181, 0.4: 0.3171, 0.5: 0.3168}
_PUBLISHED_LAMBDA = {1.0: 0.3164, 0.1: 0.3159, 0.01: 0.3181}
_PUBLISHED_ALPHA = {1.5: 0.3169, 2.0: 0.3173, 3.0: 0.3181}


def table5() -> Table:
    """The exponent of the layer size in the paper's score."""
    rows = [Row(f"eta = {eta:g}", replace(TIME_SAMPLING, eta=eta), clip) for eta, clip in _PUBLISHED_ETA.items()]
    return Table(5, "eta, the exponent of the layer size (Stage I)", tuple(rows), None)


def table6() -> Table:
    """The weight of feature distillation, and none of it."""
    rows = [
        Row(f"lambda = {weight:g}", replace(TIME_SAMPLING, feature_weight=weight), clip)
        for weight, clip in _PUBLISHED_LAMBDA.items()
    ]
    without = Row("lambda = 0", replace(TIME_SAMPLING, feature_weight=0.0))
    return Table(6, "lambda, the weight of feature distillation (Stage I)", (*rows, without), None)


def table7() -> Table:
    """The time steps' Beta(alpha, 1), and uniform ones."""
    rows = [
        Row(f"Beta({alpha:g}, 1)", replace(TIME_SAMPLING, timesteps=TimeStepConfig(kind="beta", alpha=alpha)), clip)
        for alpha, clip in _PUBLISHED_ALPHA.items()
    ]
    uniform = Row("uniform", replace(TIME_SAMPLING, timesteps=TimeStepConfig(kind="uniform")))
    return Table(7, "alpha, how training draws its time steps (Stage I)", (*rows, uniform), None)
