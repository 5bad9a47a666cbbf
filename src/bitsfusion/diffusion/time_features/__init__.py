"""Time-embedding caching (section 4.1, Appendix C): what the time step alone decides, for every step or for some."""

from bitsfusion.diffusion.time_features.basis import TimeBasis
from bitsfusion.diffusion.time_features.cache import (
    TimeFeatureBasis,
    TimeFeatureRows,
    cache_time_features,
    place_time_features,
)
from bitsfusion.diffusion.time_features.choice import BASIS, Choice, Cover, choose_features
from bitsfusion.diffusion.time_features.fit import expected_basis, fit_time_basis
from bitsfusion.diffusion.time_features.layers import time_feature_rows, time_layers

__all__ = [
    "BASIS",
    "Choice",
    "Cover",
    "TimeBasis",
    "TimeFeatureBasis",
    "TimeFeatureRows",
    "cache_time_features",
    "choose_features",
    "expected_basis",
    "fit_time_basis",
    "place_time_features",
    "time_feature_rows",
    "time_layers",
]
