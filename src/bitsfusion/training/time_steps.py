"""Which time steps training sees: Beta(3, 1), since the quantized model errs most near t = 999 (section 4.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitsfusion.training.config import TimeStepConfig


def sample_time_steps(config: TimeStepConfig, count: int, rng: np.random.Generator, total: int = 1000) -> Tensor:
    """Random time steps: floor(total x u), u ~ Beta(alpha, beta) or uniform on [0, 1).

    Differs from the paper: it says "t ~ Beta(3, 1) over [0, 999]" and not how t becomes an integer; here each
    step has the probability of its own interval [t / total, (t + 1) / total).

    Returns:
        [count] int64 in 0 .. total - 1.
    """
    unit = rng.beta(config.alpha, config.beta, count) if config.kind == "beta" else rng.random(count)
    return torch.from_numpy(np.minimum((unit * total).astype(np.int64), total - 1))
