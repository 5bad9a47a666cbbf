"""The schedulers that the page has: `page/schedulers.js` draws with these, and with these settings alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import diffusers

from bitsfusion.errors import InputError

_OFF = (None, False)
_SIGMAS = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), _OFF)
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_NOISE: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "beta_schedule": _BETAS,
    "timestep_spacing": ("leading", "trailing", "linspace"),
}
SCHEDULERS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "PNDMScheduler": {**_NOISE, "skip_prk_steps": (True,)},
    "DDIMScheduler": {**_NOISE, "thresholding": _OFF},
    "EulerDiscreteScheduler": {
        **_NOISE,
        **_SIGMAS,
        "rescale_betas_zero_snr": _OFF,
        "timestep_type": ("discrete",),
        "interpolation_type": ("linear",),
    },
    "DPMSolverMultistepScheduler": {
        **_NOISE,
        **_SIGMAS,
        **dict.fromkeys(("use_lu_lambdas", "use_flow_sigmas", "thresholding", "variance_type"), _OFF),
        "lambda_min_clipped": (-math.inf,),
        "algorithm_type": ("dpmsolver++",),
        "solver_type": ("midpoint",),
        "solver_order": (1, 2),
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_SIGMAS,
        **dict.fromkeys(("use_dynamic_shifting", "invert_sigmas", "shift_terminal", "stochastic_sampling"), _OFF),
    },
}
"""Class -> setting -> what it may be."""


def page_scheduler(config: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """A scheduler's config for the page, in plain JSON.

    Args:
        config: scheduler_config.json.
        known: the classes that the pipeline is drawn with.

    Raises:
        InputError: a class or a setting that the page does not have.
    """
    name = config.get("_class_name")
    if name not in known:
        raise InputError(f"scheduler: got {name}, wanted one that the page has: {', '.join(known)}")
    defaults = inspect.signature(getattr(diffusers, name)).parameters
    for key, allowed in SCHEDULERS[name].items():
        value = config.get(key, defaults[key].default)
        if value not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise InputError(f"scheduler: got {name} with {key} = {value}, wanted {wanted}: the page has no other")
    return {key: value for key, value in config.items() if key != "_diffusers_version" and value != -math.inf}
