"""`torch.ops.bitsfusion.time_rows`: the rows of the table for given time steps, as one operator.

The check that every step has a row looks at values. As an operator it stays whole under `torch.compile`, and raises
the same error there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsfusion.diffusion.time_features.schedule import schedule_is_good
from bitsfusion.errors import InputError

WAYS = "pack with --cover basis for every step, or name others: --cover NAME:STEPS"

_SCHEMA = "time_rows(Tensor rows, Tensor steps, Tensor timesteps, str covered) -> Tensor"


def step_bits(timesteps: Tensor) -> Tensor:
    """Time steps as they are compared: the bits of their float32 values, int32 (a cast of the model leaves them be)."""
    return (timesteps.float() + 0.0).view(torch.int32)  # -0 as 0


def time_rows(rows: Tensor, steps: Tensor, timesteps: Tensor, covered: str) -> Tensor:
    """Each time step's row, a copy; the device is waited for once for each schedule.

    Args:
        rows: [steps, channels], floating.
        steps: [steps] int32, the time step of each row; see `step_bits`.
        timesteps: [batch] of any dtype; compared exactly, in float32.
        covered: which samplers the steps come from, for the error.

    Returns:
        [batch, channels] in the dtype and on the device of `rows`.

    Raises:
        InputError: a step without a row; says which samplers are covered, and the option that mends it.
    """
    known = steps.to(timesteps.device)

    def hits(asked: Tensor) -> Tensor:
        return step_bits(asked)[:, None] == known

    def found(asked: Tensor) -> Tensor:
        return hits(asked).any(1)

    if not schedule_is_good(timesteps, steps, found):
        step = float(timesteps[~found(timesteps)][0])
        raise InputError(f"time step {step:.10g} is not cached: this model covers {covered}; use these, or {WAYS}")
    found_rows = hits(timesteps)
    picked = rows[found_rows.int().argmax(1).to(rows.device)]
    # A second guard, for a schedule whose values were changed unseen.
    return picked.masked_fill(~found_rows.any(1).to(rows.device)[:, None], float("nan"))


def _time_rows_shape(rows: Tensor, steps: Tensor, timesteps: Tensor, covered: str) -> Tensor:
    return rows.new_empty((timesteps.shape[0], rows.shape[1]))


# Reading values ends a CUDA graph; torch before 2.9 has no tag to say so.
_TAGS = ("pt2_compliant_tag", "cudagraph_unsafe")
_library = torch.library.Library("bitsfusion", "FRAGMENT")
_library.define(_SCHEMA, tags=tuple(getattr(torch.Tag, tag) for tag in _TAGS if hasattr(torch.Tag, tag)))
_library.impl("time_rows", time_rows, "CompositeExplicitAutograd")
torch.library.register_fake("bitsfusion::time_rows", _time_rows_shape, lib=_library)
