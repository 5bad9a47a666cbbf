"""Looks at the values of time steps once for each schedule, not at every step of a sampler.

To read a value that lies on an accelerator, the host waits for it. A sampler's steps are elements of one tensor, the
scheduler's `timesteps`, and come as views of it: where all of it was found good, its elements need no second look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

_REMEMBERED = 8
_LONGEST = 4096  # a schedule; a longer tensor is something else
_good: deque[tuple[Tensor, int, Tensor]] = deque(maxlen=_REMEMBERED)


def schedule_is_good(timesteps: Tensor, model: Tensor, covered: Callable[[Tensor], Tensor]) -> bool:
    """Whether every one of `timesteps` is covered; waits for the device once for each schedule.

    Args:
        timesteps: [n], such as a step of a scheduler's `timesteps` spread over a batch.
        model: one of its tensors, so that a schedule is looked at anew for another model.
        covered: [m] time steps -> [m] bool.
    """
    if timesteps.is_meta or (timesteps.is_cuda and torch.cuda.is_current_stream_capturing()):
        return True
    if timesteps.is_inference():  # such tensors do not count their changes
        return bool(covered(timesteps).all())
    storage, version = timesteps.untyped_storage(), timesteps._version
    for known, at, owner in tuple(_good):
        same = _place(known) == _place(timesteps) and known.dtype == timesteps.dtype and at == version
        if same and _place(owner) == _place(model):
            return True
    count = storage.nbytes() // timesteps.element_size()
    if count > _LONGEST:
        return bool(covered(timesteps).all())
    whole = torch.empty(0, dtype=timesteps.dtype, device=timesteps.device).set_(storage, 0, (count,), (1,))
    if bool(covered(whole).all()):
        _good.append((timesteps.detach(), version, model.detach()))  # held, so that nothing else gets their addresses
        return True
    return bool(covered(timesteps).all())


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
