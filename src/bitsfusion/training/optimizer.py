"""AdamW over weights and scales, and the learning-rate schedule as a pure function of the step.

AdamW divides a gradient by its own size, and with it LSQ's factor for the scales: the learning rate alone says how far
a parameter moves in a step. Scales of 8 bits are a tenth of those of 2 bits or less, so that one length for all would
be small for some layers and ruin others. A scale's step is therefore in proportion to the scale.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantized_layers
from bitsfusion.training.config import TrainingConfig

RELATIVE = "relative"
"""The key of a parameter group that marks one of scales."""


def choose_trained(student: nn.Module, config: TrainingConfig) -> None:
    """Lets train what `config.trained` names, and nothing else: all parameters, or those of one dimension."""
    for parameter in student.parameters():
        parameter.requires_grad_(config.trained == "all" or parameter.dim() == 1)


def build_optimizer(
    student: nn.Module, config: TrainingConfig, device: torch.device
) -> tuple[torch.optim.Optimizer, list[str]]:
    """AdamW over what trains (see `choose_trained`), and the parameters' names in its order.

    Scales are in the last group. They take AdamW's step as a ratio, s <- s exp(-rate m / (sqrt(v) + eps)), which is
    AdamW on log s, and are not decayed.

    Raises:
        InputError: use_8bit_adam without bitsandbytes.
    """
    scales = {f"{name}.scale" for name in fake_quantized_layers(student)}
    named = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    names = [name for name in named if name not in scales] + [name for name in named if name in scales]
    rate = config.learning_rate
    decay = config.adam_weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [named[n] for n in names if n not in scales], "lr": rate, "weight_decay": decay},
        {
            "params": [named[n] for n in names if n in scales],
            "lr": config.scale_learning_rate or rate,
            "weight_decay": 0.0,
            RELATIVE: True,
        },
    ]
    options: dict[str, Any] = {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}
    if config.use_8bit_adam:
        return with_relative_steps(_adamw_8bit())(groups, lr=rate, **options), names
    fused = device.type in ("cpu", "cuda")
    return with_relative_steps(torch.optim.AdamW)(groups, lr=rate, fused=fused, **options), names


@functools.cache
def with_relative_steps(base: Any) -> Any:
    """The optimizer class `base`, AdamW of some make, whose groups marked `RELATIVE` step in proportion.

    Those groups come last. Their state has the names of torch's AdamW: step, exp_avg and exp_avg_sq, the moments of the
    plain gradient.
    """

    class RelativeAdamW(base):
        param_groups: list[dict[str, Any]]

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            groups: list[dict[str, Any]] = self.param_groups
            self.param_groups = [group for group in groups if not group.get(RELATIVE)]
            try:
                loss = super().step(closure)
            finally:
                self.param_groups = groups
            # Under fp16 the loss scaler leaves it to the step to divide, and to do nothing after an overflow.
            overflow, divisor = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
            if overflow is None or not bool(overflow):
                for group in groups:
                    if group.get(RELATIVE):
                        _relative_step(group, self.state, divisor)
            return loss

    return RelativeAdamW


def _relative_step(group: dict[str, Any], states: Any, divisor: Tensor | None) -> None:
    """One step of a group; nothing in it waits for the device."""
    beta1, beta2 = group["betas"]
    for scale in group["params"]:
        if scale.grad is None:
            continue
        state = states[scale]
        if "exp_avg" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(scale), torch.zeros_like(scale)
        gradient = scale.grad if divisor is None else scale.grad / divisor
        state["step"] = count = state["step"] + 1
        first, second = state["exp_avg"].lerp_(gradient, 1 - beta1), state["exp_avg_sq"]
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
        scale.mul_((first / (1 - beta1**count)).div_(size).mul_(-group["lr"]).exp_())


def _adamw_8bit() -> Any:
    try:
        return importlib.import_module("bitsandbytes").optim.AdamW8bit
    except ImportError as error:
        raise InputError(f"use_8bit_adam: wanted the package bitsandbytes, got {error}") from None


def learning_rate_factor(config: TrainingConfig) -> Callable[[int], float]:
    """The factor of the learning rates at each step (from 0): diffusers' schedule of that name."""
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(
        config.lr_scheduler, unused, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.max_train_steps
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
