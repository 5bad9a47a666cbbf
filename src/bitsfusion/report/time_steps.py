"""Figure 4: where a quantized model errs, beside how often training visits each time step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bitsfusion.io.atomic import atomic_path


def draw_time_steps(
    curve: Sequence[tuple[int, float]], out: Path, alpha: float = 3.0, beta: float = 1.0, total: int = 1000
) -> None:
    """The curve of Eq. 9 with the densities of Beta(alpha, beta), uniform and measured sampling, as a PNG.

    Args:
        curve: (t, latent error).
        out: the file.
        alpha, beta: of the distribution to compare with.
        total: diffusion time steps.
    """
    from matplotlib.figure import Figure
    from scipy.stats import beta as beta_distribution

    steps, errors = np.array(curve).T
    every = np.arange(total)
    measured = np.interp(every, steps, errors)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, errors, marker="o", markersize=3)
    left.set(xlabel="time step t", ylabel="latent error (Eq. 9)", yscale="log" if errors.min() > 0 else "linear")
    densities = {
        f"Beta({alpha:g}, {beta:g})": beta_distribution.pdf((every + 0.5) / total, alpha, beta),
        "uniform": np.ones(total),
        "measured": measured / measured.mean(),
    }
    for label, density in densities.items():
        right.plot(every, density, label=label)
    right.set(xlabel="time step t", ylabel="visits, relative to uniform", ylim=(0, None))
    right.legend(frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
