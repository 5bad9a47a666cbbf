"""The samplers of diffusers by name, on a model's own noise schedule, and the time steps that they visit.

PNDM with 50 steps is the paper's (section 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin

from bitsfusion.diffusion.process import is_flow
from bitsfusion.errors import InputError, reason

OWN = "own"
"""The scheduler that lies in a pipeline's folder."""


class Sampler(str, Enum):
    """The samplers that runs and scores are compared on, by the name that commands and files use."""

    PNDM = "pndm"
    DDIM = "ddim"
    DPM = "dpm"
    LCM = "lcm"
    OWN = OWN


_LEFT_TO_CLASS = "_use_default_values"  # diffusers' list of the config's keys that its file does not have
_SHORT = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "dpm-single": "DPMSolverSinglestepScheduler",
    "dpm-sde": "DPMSolverSDEScheduler",
    "deis": "DEISMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-a": "KDPM2AncestralDiscreteScheduler",
    "edm-euler": "EDMEulerScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
_NAMES = {scheduler: name for name, scheduler in _SHORT.items()}
_ZERO_SNR_FLOOR = 2.0**-24
"""The last cumulative alpha of a zero-terminal-SNR schedule where a class divides by it, as in diffusers' Euler."""


@dataclass(frozen=True)
class SamplerSteps:
    """A sampler and how many inference steps it is asked for."""

    name: str
    steps: int

    def __str__(self) -> str:
        return f"{self.name} {self.steps}"


@dataclass(frozen=True)
class Coverage:
    """The time steps of the cached rows, in their order, and the samplers they come from (may be none)."""

    steps: tuple[float, ...]
    samplers: tuple[SamplerSteps, ...] = ()

    def __post_init__(self) -> None:
        if not self.steps or len(set(self.steps)) != len(self.steps):
            raise InputError(
                f"time steps: got {len(self.steps)}, {len(set(self.steps))} different; wanted one or more, none twice"
            )

    def __str__(self) -> str:
        if self.samplers:
            return ", ".join(f"{sampler} steps" for sampler in self.samplers)
        shown = ", ".join(f"{step:g}" for step in self.steps[:8])
        return f"the steps {shown}" + (f" and {len(self.steps) - 8} more" if len(self.steps) > 8 else "")


def sampler_name(name: str) -> str:
    """The name that files use of a sampler: the short one, or the class's where it has none; `own` as it is.

    Args:
        name: a short name, or a scheduler class of diffusers, with or without "Scheduler"; case, `-` and `_` are one.

    Raises:
        InputError: diffusers has no such scheduler.
    """
    wanted = _letters(name)
    if wanted == OWN:
        return OWN
    for short, scheduler in _SHORT.items():
        if wanted in (_letters(short), _letters(scheduler), _letters(scheduler.removesuffix("Scheduler"))):
            return short
    for scheduler in dir(diffusers):
        if scheduler.endswith("Scheduler") and wanted in (
            _letters(scheduler),
            _letters(scheduler.removesuffix("Scheduler")),
        ):
            return scheduler
    raise InputError(
        f"sampler: got {name!r}, wanted {OWN}, {', '.join(_SHORT)}, or a scheduler class of diffusers by its name"
    )


def _letters(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _class(name: str, scheduler_config: Mapping[str, Any]) -> type[SchedulerMixin]:
    chosen = sampler_name(name)
    class_name = scheduler_config.get("_class_name") if chosen == OWN else _SHORT.get(chosen, chosen)
    found = getattr(diffusers, str(class_name), None)
    if not isinstance(found, type) or not hasattr(found, "from_config"):
        got = f"{class_name!r} in the scheduler's config" if chosen == OWN else repr(name)
        raise InputError(f"sampler: got {got}, wanted a scheduler class of diffusers")
    return found


def build_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    """The diffusers scheduler called `name` on the noise schedule of a pipeline's scheduler config.

    The config's values count as its file's, those that its file leaves to the class too: so it is once diffusers has
    saved it, and a packed folder draws as the model it was made from.

    What the model was trained on holds for every sampler: the betas, rescaled to a last signal-to-noise ratio of zero
    where the config says so (also where a class has no such option), and what the model predicts.

    DDIM clips the predicted sample to [-1, 1] where its config does not say otherwise, which is meant for pixels and
    destroys latents: a config that says nothing of it (PNDM has no such option) means no clipping.

    Raises:
        InputError: no sampler of that name, one that needs a package that is not there, or one that cannot sample from
            what the model predicts.
    """
    return _scheduler(name, {key: value for key, value in scheduler_config.items() if key != _LEFT_TO_CLASS})


def _scheduler(name: str, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    kind = _class(name, scheduler_config)
    own = scheduler_config.get("_class_name") == kind.__name__
    options = {} if own or not issubclass(kind, SchedulerMixin) else _carried(kind, scheduler_config)
    latents = {"clip_sample": False} if kind.__name__ == "DDIMScheduler" else {}
    try:
        built: SchedulerMixin = kind.from_config({**latents, **scheduler_config, **options})
    except (ImportError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"sampler {name}: {kind.__name__} cannot be made from this scheduler's config: {reason(error)}"
        ) from None
    return built


def _carried(kind: type[SchedulerMixin], config: Mapping[str, Any]) -> dict[str, Any]:
    """What another class needs told differently to sample from the same model."""
    known = kind._get_init_keys(kind)
    if is_flow(config):
        if is_flow({"_class_name": kind.__name__}):
            return {}
        if "use_flow_sigmas" not in known:
            raise InputError(f"sampler: got {kind.__name__} for a model of flow matching, wanted own, dpm or unipc")
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    latents = {"skip_prk_steps": True} if "skip_prk_steps" in known else {}  # as Stable Diffusion has it
    predicted = config.get("prediction_type", "epsilon")
    if predicted != "epsilon" and "prediction_type" not in known:
        raise InputError(
            f"sampler: got {kind.__name__} for a model that predicts {predicted}, wanted one that takes a "
            "prediction_type, such as own, ddim or euler"
        )
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known and "trained_betas" in known:
        return latents | {"trained_betas": _zero_snr_betas(config)}
    return latents


def _zero_snr_betas(config: Mapping[str, Any]) -> list[float]:
    """The betas whose last signal-to-noise ratio is (nearly) zero: Lin et al., arXiv:2305.08891, algorithm 1."""
    plain = {key: value for key, value in config.items() if key != "rescale_betas_zero_snr"}
    betas = diffusers.DDIMScheduler.from_config(plain).betas.double()
    root = (1 - betas).cumprod(0).sqrt()
    cumulative = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square().clamp(min=_ZERO_SNR_FLOOR)
    alphas = torch.cat([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return [float(beta) for beta in 1 - alphas]


def default_sampler(scheduler: SchedulerMixin) -> str:
    """What a pipeline is drawn with where nobody says: the paper's PNDM; its own scheduler for flow matching."""
    flow = is_flow({**scheduler.config, "_class_name": type(scheduler).__name__})
    return OWN if flow else Sampler.PNDM.value


def check_steps(scheduler: SchedulerMixin, name: str, steps: int) -> None:
    """Sets `steps` inference steps (a pipeline's `num_inference_steps`), which a scheduler called `name` may not have.

    Raises:
        InputError: fewer than one, more than it was trained with, or whatever its class refuses.
    """
    trained = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= trained:
        raise InputError(f"sampler {name}: got {steps} steps, wanted 1 to {trained}")
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise InputError(f"sampler {name}: got {steps} steps: {reason(error)}") from None


def _visited(scheduler: SchedulerMixin, name: str, steps: int) -> list[float]:
    """The different time steps in their order: whole ones as int, others as the float32 number that is asked for."""
    check_steps(scheduler, name, steps)
    visited = (float(np.float32(step)) for step in scheduler.timesteps.tolist())
    return list(dict.fromkeys(int(step) if step.is_integer() else step for step in visited))


def cover(samplers: Iterable[SamplerSteps | tuple[str, int]], scheduler_config: Mapping[str, Any]) -> Coverage:
    """The union of the steps of all `samplers`, from the noisiest on.

    A value that the config's file leaves to its class (`timestep_spacing` in SD-v1.5) is that class's default when the
    saved config makes another scheduler, but the other class's when the original does: both readings are covered.

    Raises:
        InputError: no such sampler, a number of steps that its schedule does not have, or no sampler given.
    """
    given = tuple(s if isinstance(s, SamplerSteps) else SamplerSteps(*s) for s in samplers)
    named, steps = [], set[float]()
    for s in given:
        for build in (build_scheduler, _scheduler):
            steps.update(_visited(build(s.name, scheduler_config), s.name, s.steps))
        kind = _class(s.name, scheduler_config).__name__
        named.append(SamplerSteps(_NAMES.get(kind, kind), s.steps))
    return Coverage(tuple(sorted(steps, reverse=True)), tuple(named))
