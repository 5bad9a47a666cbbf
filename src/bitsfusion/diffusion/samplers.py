"""The time steps that a sampler visits; PNDM with 50 is the paper's (section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, PNDMScheduler, SchedulerMixin

from bitsfusion.errors import InputError


class Sampler(str, Enum):
    """A sampler by the name that commands and files use."""

    PNDM = "pndm"
    DDIM = "ddim"
    DPM = "dpm"
    LCM = "lcm"


_LEFT_TO_CLASS = "_use_default_values"  # diffusers' list of the config's keys that its file does not have
_CLASSES = {
    Sampler.PNDM: PNDMScheduler,
    Sampler.DDIM: DDIMScheduler,
    Sampler.DPM: DPMSolverMultistepScheduler,
    Sampler.LCM: LCMScheduler,
}


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

    steps: tuple[int, ...]
    samplers: tuple[SamplerSteps, ...] = ()

    def __post_init__(self) -> None:
        if not self.steps or len(set(self.steps)) != len(self.steps):
            raise InputError(
                f"time steps: got {len(self.steps)}, {len(set(self.steps))} different; wanted one or more, none twice"
            )

    def __str__(self) -> str:
        if self.samplers:
            return ", ".join(f"{sampler} steps" for sampler in self.samplers)
        shown = ", ".join(str(step) for step in self.steps[:8])
        return f"the steps {shown}" + (f" and {len(self.steps) - 8} more" if len(self.steps) > 8 else "")


def build_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    """The diffusers scheduler called `name` on the noise schedule of a pipeline's scheduler config.

    The config's values count as its file's, those that its file leaves to the class too: so it is once diffusers has
    saved it, and a packed folder draws as the model it was made from.

    DDIM clips the predicted sample to [-1, 1] where its config does not say otherwise, which is meant for pixels and
    destroys latents: a config that says nothing of it (PNDM has no such option) means no clipping.

    Raises:
        InputError: no sampler of that name.
    """
    return _scheduler(name, {key: value for key, value in scheduler_config.items() if key != _LEFT_TO_CLASS})


def _scheduler(name: str, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    try:
        scheduler = _CLASSES[Sampler(name)]
    except ValueError:
        raise InputError(f"sampler: got {name!r}, wanted one of {', '.join(s.value for s in Sampler)}") from None
    latents = {"clip_sample": False} if scheduler is DDIMScheduler else {}
    built: SchedulerMixin = scheduler.from_config({**latents, **scheduler_config})
    return built


def sampler_timesteps(name: str, steps: int, scheduler_config: Mapping[str, Any]) -> list[int]:
    """The different time steps that sampler `name` visits in `steps` inference steps, in their order.

    Args:
        name: pndm, ddim, dpm or lcm.
        steps: as given to the pipeline's `num_inference_steps`.
        scheduler_config: `pipeline.scheduler.config`.

    Raises:
        InputError: no such sampler, or a number of steps the schedule does not have.
    """
    return _visited(build_scheduler(name, scheduler_config), name, steps)


def _visited(scheduler: SchedulerMixin, name: str, steps: int) -> list[int]:
    trained = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= trained:
        raise InputError(f"sampler {name}: got {steps} steps, wanted 1 to {trained}")
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise InputError(f"sampler {name}: got {steps} steps: {str(error).strip().splitlines()[0]}") from None
    return list(dict.fromkeys(int(step) for step in scheduler.timesteps))


def cover(samplers: Iterable[SamplerSteps | tuple[str, int]], scheduler_config: Mapping[str, Any]) -> Coverage:
    """The union of the steps of all `samplers`, from the noisiest on.

    A value that the config's file leaves to its class (`timestep_spacing` in SD-v1.5) is that class's default when the
    saved config makes another scheduler, but the other class's when the original does: both readings are covered.

    Raises:
        InputError: as `sampler_timesteps`, or no sampler given.
    """
    named = tuple(s if isinstance(s, SamplerSteps) else SamplerSteps(*s) for s in samplers)
    steps: set[int] = set()
    for s in named:
        for build in (build_scheduler, _scheduler):
            steps.update(_visited(build(s.name, scheduler_config), s.name, s.steps))
    return Coverage(tuple(sorted(steps, reverse=True)), named)
