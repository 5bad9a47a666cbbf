"""`torch.ops.bitsfusion.time_rows`: the rows of the table for given time steps, as one operator.

The check that every step has a row looks at values. As an operator it stays whole under `torch.compile`, and raises
the same error there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsfusion.errors import InputError

_SCHEMA = "time_rows(Tensor rows, Tensor steps, Tensor timesteps, str covered) -> Tensor"


def time_rows(rows: Tensor, steps: Tensor, timesteps: Tensor, covered: str) -> Tensor:
    """Each time step's row, a copy.

    Args:
        rows: [steps, channels], floating.
        steps: [steps] int64, the time step of each row.
        timesteps: [batch] of any dtype; compared exactly, floating ones in float32.
        covered: which samplers the steps come from, for the error.

    Returns:
        [batch, channels] in the dtype and on the device of `rows`.

    Raises:
        InputError: a step without a row; says which samplers are covered.
    """
    asked = timesteps.float() if timesteps.is_floating_point() else timesteps
    hits = asked[:, None] == steps.to(asked.device)
    found = hits.any(1)
    if not bool(found.all()):
        step = float(asked[~found][0])
        way = "use these or pack again"
        if not step.is_integer():
            way = (
                "a step with a fraction cannot be cached: give the scheduler timestep_spacing='leading' and a covered "
                "number of steps, or pack with the time layers kept"
            )
        raise InputError(f"time step {step:.10g} is not cached: this model covers {covered}; {way}")
    return rows[hits.int().argmax(1).to(rows.device)]


def _time_rows_shape(rows: Tensor, steps: Tensor, timesteps: Tensor, covered: str) -> Tensor:
    return rows.new_empty((timesteps.shape[0], rows.shape[1]))


# Reading values ends a CUDA graph; torch before 2.9 has no tag to say so.
_TAGS = ("pt2_compliant_tag", "cudagraph_unsafe")
_library = torch.library.Library("bitsfusion", "FRAGMENT")
_library.define(_SCHEMA, tags=tuple(getattr(torch.Tag, tag) for tag in _TAGS if hasattr(torch.Tag, tag)))
_library.impl("time_rows", time_rows, "CompositeExplicitAutograd")
torch.library.register_fake("bitsfusion::time_rows", _time_rows_shape, lib=_library)
