"""Which time steps training sees: Beta(3, 1), since the quantized model errs most near t = 999 (section 4.2)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bitsfusion.diffusion.process import Process
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.training.config import TimeStepConfig

Draw: TypeAlias = Callable[[int, np.random.Generator], Tensor]
"""(count, rng) -> [count] time steps, as the process counts them."""


def time_step_sampler(config: TimeStepConfig, process: Process) -> Draw:
    """Draws random time steps at u ~ Beta(alpha, beta), uniform, logit-normal or by mode on [0, 1]; or by a measured
    curve, or among a few.

    A noise schedule of T steps takes floor(T x u); a flow takes T x s, where s is u after the flow's shift.
    Logit-normal and mode are Stable Diffusion 3's (arXiv 2403.03206, section 3.1): the logistic function of a normal
    variable; 1 - u - scale (cos^2(pi u / 2) - 1 + u) of a uniform one. A model distilled to N steps sees
    u = 1, 1 - 1/N, ..., 1/N alone.

    Differs from the paper: it says "t ~ Beta(3, 1) over [0, 999]" and not how t becomes an integer; here each
    step has the probability of its own interval [t / total, (t + 1) / total). `measured` is not in the paper: the
    probability of a step is proportional to the error measured there (Eq. 9), see `measured_density`.

    Raises:
        InputError: the curve's file is missing or is no such curve.
    """
    if config.kind == "measured":
        assert config.curve is not None
        total = process.steps
        cumulative = np.cumsum(measured_density(read_curve(config.curve), total))

        def draw(count: int, rng: np.random.Generator) -> Tensor:
            places = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
            chosen = torch.from_numpy(np.minimum(places, total - 1).astype(np.int64))
            return chosen.to(process.time_steps(torch.zeros(1)).dtype)

        return draw

    def draw_unit(count: int, rng: np.random.Generator) -> Tensor:
        if config.kind == "logit_normal":
            unit = 1 / (1 + np.exp(-rng.normal(config.mean, config.std, count)))
        elif config.kind == "mode":
            even = rng.random(count)
            unit = 1 - even - config.mode_scale * (np.cos(np.pi * even / 2) ** 2 - 1 + even)
        elif config.kind == "few":
            assert config.steps is not None
            unit = 1 - rng.integers(config.steps, size=count) / config.steps
        else:
            unit = rng.beta(config.alpha, config.beta, count) if config.kind == "beta" else rng.random(count)
        return process.time_steps(torch.from_numpy(unit))

    return draw_unit


@functools.lru_cache(maxsize=8)
def read_curve(path: Path) -> tuple[tuple[int, float], ...]:
    """The first curve of a file that `bitsfusion timesteps` wrote: (t, error) with t increasing.

    Raises:
        InputError: no such file, or one that is no curve with errors above zero.
    """
    content = read_json(path)
    try:
        curve = next(iter(content["latent_error"].values()))
        points = tuple((int(step), float(error)) for step, error in curve)
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        raise InputError(f"{path}: wanted a curve from bitsfusion timesteps, got {str(content)[:60]}") from None
    rising = all(before[0] < after[0] for before, after in itertools.pairwise(points))
    errors = [error for _, error in points]
    if len(points) < 2 or not rising or not np.isfinite(errors).all() or min(errors) < 0 or max(errors) == 0:
        raise InputError(
            f"{path}: wanted two or more time steps in order with errors of zero or more, got {points[:3]}"
        )
    return points


def measured_density(curve: tuple[tuple[int, float], ...], total: int) -> np.ndarray:
    """The probability of each of `total` time steps: the curve between its points linear, beyond them flat."""
    steps, errors = zip(*curve, strict=True)
    density = np.interp(np.arange(total), steps, errors)
    return density / density.sum()
