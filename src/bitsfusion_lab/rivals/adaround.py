"""AdaRound (Nagel et al., 2020, arXiv 2004.10568): whether each weight goes up or down is learned, not nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bitsfusion_lab.rivals.stored import UniformWeight

GAMMA, ZETA = -0.1, 1.1
"""The ends of the rectified sigmoid (Eq. 23)."""
REGULARIZER = 0.01
TRAVEL = 10.0
_WARM_UP = 0.2
_BETA_FROM, _BETA_TO = 20.0, 2.0


class Rounding:
    """One weight on a uniform grid of b bits with zero points, from its least to its largest value.

    Each output channel has its own scale and zero point; with `groups`, each group of input channels has (Q-Diffusion's
    shortcut splitting).
    """

    def __init__(self, weight: Tensor, bits: int, groups: Sequence[int] = ()) -> None:
        """`weight` is [out, in, ...] float32; `groups` add up to `in`."""
        self.bits, self.groups = bits, tuple(groups)
        self._last = (1 << bits) - 1
        sizes = list(groups) or [weight.shape[1]]
        parts = [part.flatten(1) for part in weight.detach().split(sizes, dim=1)]
        low = torch.stack([part.amin(1).clamp(max=0) for part in parts])
        high = torch.stack([part.amax(1).clamp(min=0) for part in parts])
        self.scale = (high - low) / self._last
        safe = torch.where(self.scale > 0, self.scale, 1)
        self.zero = (-low / safe).round().clamp(0, self._last)
        tail = [1] * (weight.dim() - 2)

        def spread(values: Tensor) -> Tensor:
            columns = [row[:, None].expand(-1, size) for row, size in zip(values, sizes, strict=True)]
            return torch.cat(columns, dim=1).reshape(*weight.shape[:2], *tail)

        self._scale, self._zero = spread(safe), spread(self.zero)
        ratio = weight.detach() / self._scale
        self.floor = ratio.floor()
        rest = ratio - self.floor
        self._nearest = rest >= 0.5
        inside = ((rest - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1 - 1e-4)
        self.variable = torch.log(inside / (1 - inside)).requires_grad_()

    def up(self) -> Tensor:
        """h(V), 0 to 1: how far each weight goes up."""
        return (torch.sigmoid(self.variable) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def soft(self) -> Tensor:
        """The weight while h(V) is learned (Eq. 22)."""
        return self._value(self.up())

    def hard(self) -> Tensor:
        """The weight with h(V) made 0 or 1."""
        return self._value((self.variable.detach() >= 0).float())

    def nearest(self) -> Tensor:
        """The weight rounded to nearest."""
        return self._value(self._nearest.float())

    def use_nearest(self) -> None:
        """Makes `hard` the same as `nearest`."""
        self.variable = torch.where(self._nearest, 1.0, -1.0)

    def stored(self) -> UniformWeight:
        """What a file has to hold; its `dense` is `hard`."""
        codes = self._codes((self.variable.detach() >= 0).float()).to(torch.uint8)
        scale = torch.where(self.scale > 0, self.scale, 1)
        return UniformWeight(self.bits, codes, scale, self.zero.to(torch.uint8), self.groups)

    def penalty(self, beta: float) -> Tensor:
        """f_reg (Eq. 24): sum of 1 - |2 h - 1|^beta."""
        return (1 - (2 * self.up() - 1).abs().pow(beta)).sum()

    def _codes(self, up: Tensor) -> Tensor:
        return (self.floor + up + self._zero).clamp(0, self._last)

    def _value(self, up: Tensor) -> Tensor:
        return (self._codes(up) - self._zero) * self._scale


def learn_rounding(
    roundings: Mapping[str, Rounding],
    output: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    target: Tensor,
    iterations: int,
    generator: torch.Generator,
    *,
    batch: int = 32,
    learning_rate: float | None = None,
) -> tuple[float, float]:
    """Learns all `roundings` together to reconstruct `target`; where that ends no better than nearest, nearest it is.

    Args:
        roundings: by the weight's name.
        output: (weights by name, sample indices) -> the output of these samples.
        target: full precision's output of all samples, [n, ...].
        iterations: optimizer steps (Adam); the paper has 10 000.
        generator: draws the samples.
        learning_rate: by default such that a variable can go as far as in the paper's 10 000 steps of 0.001.

    Returns:
        Mean squared error over all samples, of nearest rounding and of what was learned.
    """
    rate = min(TRAVEL / max(1, iterations), 0.1) if learning_rate is None else learning_rate
    optimizer = torch.optim.Adam([rounding.variable for rounding in roundings.values()], lr=rate)
    for step in range(iterations):
        chosen = torch.randperm(len(target), generator=generator)[:batch]
        got = output({name: rounding.soft() for name, rounding in roundings.items()}, chosen)
        # Over the output's channels summed and otherwise a mean, as BRECQ's reconstruction loss is.
        loss = (got - target[chosen]).square().sum(1).mean()
        progress = step / iterations
        if progress >= _WARM_UP:
            done = (progress - _WARM_UP) / (1 - _WARM_UP)
            beta = _BETA_TO + (_BETA_FROM - _BETA_TO) * (1 - done)
            loss = loss + REGULARIZER * torch.stack([r.penalty(beta) for r in roundings.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def error(weights: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            parts = torch.arange(len(target)).split(batch)
            return sum(float((output(weights, part) - target[part]).square().sum()) for part in parts) / target.numel()

    nearest = error({name: rounding.nearest() for name, rounding in roundings.items()})
    learned = error({name: rounding.hard() for name, rounding in roundings.items()})
    if learned < nearest:
        return nearest, learned
    for rounding in roundings.values():
        rounding.use_nearest()
    return nearest, nearest
