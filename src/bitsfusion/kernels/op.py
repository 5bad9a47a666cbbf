"""`torch.ops.bitsfusion.unpack`: unpacking as one operator that tracing and `torch.compile` keep whole.

unpack(Tensor packed, SymInt[] shape, int bits, ScalarType dtype) -> Tensor, see `dispatch.unpack`. Registered when
this module is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsfusion.kernels.dispatch import unpack

_SCHEMA = "unpack(Tensor packed, SymInt[] shape, int bits, ScalarType dtype) -> Tensor"

_library = torch.library.Library("bitsfusion", "DEF")
_library.define(_SCHEMA, tags=[torch.Tag.pt2_compliant_tag])
_library.impl("unpack", unpack, "CompositeExplicitAutograd")


@torch.library.register_fake("bitsfusion::unpack", lib=_library)
def _unpack_shape(packed: Tensor, shape: Sequence[int], bits: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty(shape, dtype=dtype)
