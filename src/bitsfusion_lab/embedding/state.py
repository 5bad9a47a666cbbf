"""Weights in training, their running average and the optimizer, saved whole and resumed by the same command."""

from __future__ import annotations

import copy
import math
import os
import time
from pathlib import Path

import torch


class TrainState:
    """AdamW with a warm-up of 200 steps and a cosine to zero, and the exponential average of the weights.

    Args:
        modules: what is trained, by name.
        out: the folder of `state.pt`; gone on from where it is there.
        lr: the highest learning rate.
        steps: how many there are in all.
        ema: the average's decay; it grows to this from 0 at the start.
    """

    def __init__(self, modules: dict[str, torch.nn.Module], out: Path, lr: float, steps: int, ema: float) -> None:
        self.modules, self.out, self.steps, self.lr, self.ema = modules, out, steps, lr, ema
        self.step = 0
        self.parameters = [p for m in modules.values() for p in m.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.averaged = copy.deepcopy(modules)
        self._started = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        if (out / "state.pt").exists():
            state = torch.load(out / "state.pt", weights_only=True)
            self.step = state["step"]
            self.optimizer.load_state_dict(state["optimizer"])
            for name in modules:
                modules[name].load_state_dict(state["modules"][name])
                self.averaged[name].load_state_dict(state["averaged"][name])

    @property
    def running(self) -> bool:
        """Whether there are steps left."""
        return self.step < self.steps

    def update(self, loss: torch.Tensor) -> None:
        """One step down the gradient of `loss`."""
        warmup = min(1.0, (self.step + 1) / 200)
        rate = self.lr * warmup * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                averages: list[torch.Tensor] = list(self.averaged[name].parameters())
                values: list[torch.Tensor] = list(module.parameters())
                torch._foreach_lerp_(averages, values, 1 - decay)

    def save(self) -> None:
        """Writes `state.pt` in one move, so that a killed training has the last one."""
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "averaged": {name: module.state_dict() for name, module in self.averaged.items()},
        }
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")

    def log(self, every: int, **values: float) -> None:
        """Prints `values` and saves, each `every` steps."""
        if self.step % every == 0:
            fields = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"step {self.step}/{self.steps} {fields} {time.monotonic() - self._started:.0f} s", flush=True)
            self.save()


def averaged_weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights of a training's folder, by the name of their module."""
    weights: dict[str, dict[str, torch.Tensor]] = torch.load(folder / "state.pt", weights_only=True)["averaged"]
    return weights
