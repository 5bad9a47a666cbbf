"""AdamW over weights and scales, and the learning-rate schedule as a pure function of the step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantized_layers
from bitsfusion.training.config import TrainingConfig


def build_optimizer(
    student: nn.Module, config: TrainingConfig, device: torch.device
) -> tuple[torch.optim.Optimizer, list[str]]:
    """AdamW over weights and scales, and the parameters' names in its order; scales are not decayed.

    Raises:
        InputError: use_8bit_adam without bitsandbytes.
    """
    scales = {f"{name}.scale" for name in fake_quantized_layers(student)}
    named = dict(student.named_parameters())
    names = [name for name in named if name not in scales] + [name for name in named if name in scales]
    rate = config.learning_rate
    groups = [
        {"params": [named[n] for n in names if n not in scales], "lr": rate, "weight_decay": config.adam_weight_decay},
        {
            "params": [named[n] for n in names if n in scales],
            "lr": config.scale_learning_rate or rate,
            "weight_decay": 0.0,
        },
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    if config.use_8bit_adam:
        return _adamw_8bit()(groups, lr=rate, betas=betas, eps=config.adam_epsilon), names
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.adam_epsilon, fused=fused), names


def _adamw_8bit() -> Any:
    try:
        return importlib.import_module("bitsandbytes").optim.AdamW8bit
    except ImportError as error:
        raise InputError(f"use_8bit_adam: wanted the package bitsandbytes, got {error}") from None


def learning_rate_factor(config: TrainingConfig) -> Callable[[int], float]:
    """By what the learning rates are multiplied at each step (from 0): diffusers' schedule of that name."""
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(
        config.lr_scheduler, unused, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.max_train_steps
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
