"""Time-embedding caching (section 4.1, Appendix C): which steps a sampler takes, and their features as a table."""

from bitsfusion.diffusion.samplers import Coverage, Sampler, SamplerSteps, build_scheduler, cover, sampler_timesteps
from bitsfusion.diffusion.time_features.cache import (
    cache_time_features,
    place_time_features,
    time_feature_rows,
    time_layers,
)

__all__ = [
    "Coverage",
    "Sampler",
    "SamplerSteps",
    "build_scheduler",
    "cache_time_features",
    "cover",
    "place_time_features",
    "sampler_timesteps",
    "time_feature_rows",
    "time_layers",
]
