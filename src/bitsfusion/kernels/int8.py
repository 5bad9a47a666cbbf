"""Packed layers on activations that are rounded to int8 while they run: about half the time, not the same result.

An activation vector x (a token; for a convolution the patch under its window) becomes q = round(x / t) with
t = max |x| / 127, and the output is sum(level q) t scale + bias: the sum is exact, weights are not rounded at all.
Only compiled, for x86-64 with AVX-512 VNNI or AVX2.

    int8_linear(Tensor input, Tensor packed, SymInt[] shape, int bits, Tensor? bias) -> Tensor
    int8_convolution(Tensor input, Tensor packed, SymInt[] shape, int bits, Tensor? bias, SymInt[] padding,
                     int stride) -> Tensor

are the operators of `torch.ops.bitsfusion`, registered when this module is imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitsfusion.kernels.cpu.library import DTYPES, Isa, Missing, library, loaded
from bitsfusion.numerics import MAX_BITS

LARGEST_BITS = MAX_BITS - 1  # b = 8 has a level that no byte holds
MAX_TAPS = 9
WIDTH_MULTIPLE = 4


def why_not() -> str | None:
    """The reason that int8 activations are not available here; None where they are."""
    found = library()
    if isinstance(found, Missing):
        return found.reason
    return None if found.int8 else "the processor has neither AVX-512 VNNI nor AVX2"


def serves(input: Tensor) -> bool:
    """Whether a layer can take `input`, where there is a library: device and dtype."""
    return input.device.type == "cpu" and input.dtype in DTYPES


def serves_convolution(input: Tensor, kernel: Sequence[int], padding: Sequence[int], stride: int) -> bool:
    """Whether a convolution can: also at most 9 taps, and the output's width a multiple of 4."""
    width = (input.shape[-1] + 2 * padding[1] - kernel[1]) // stride + 1
    return (
        serves(input)
        and input.dim() == 4
        and math.prod(kernel) <= MAX_TAPS
        and width > 0
        and width % WIDTH_MULTIPLE == 0
    )


def linear(
    input: Tensor, packed: Tensor, shape: Sequence[int], bits: int, bias: Tensor | None, isa: Isa | None = None
) -> Tensor:
    """A linear layer.

    Args:
        input: [..., in] float32, bfloat16 or float16 on the CPU.
        packed: a layer's buffer.
        shape: [out, in].
        bits: 1 to 7.
        bias: [out] of any floating dtype, added in float32.
        isa: one of the library's `int8`, the best one where not given.

    Returns:
        [..., out] of `input`'s dtype.

    Raises:
        RuntimeError: no library.
        ValueError: sizes that do not fit, or an input that is not served.
    """
    x = input.contiguous()
    out = x.new_empty(*x.shape[:-1], shape[0])
    offset = None if bias is None else bias.detach().float().contiguous()
    found = loaded()
    status = found.functions.bitsfusion_int8_linear(
        packed.data_ptr(),
        packed.numel(),
        shape[0],
        shape[1] if x.shape[-1] == shape[1] else -1,
        bits,
        x.data_ptr(),
        x.numel() // max(1, shape[1]),
        DTYPES.get(x.dtype, -1),
        None if offset is None else offset.data_ptr(),
        out.data_ptr(),
        found.int8[-1] if isa is None else isa,
        torch.get_num_threads(),
    )
    _check(status, input, shape, bits)
    return out


def convolution(
    input: Tensor,
    packed: Tensor,
    shape: Sequence[int],
    bits: int,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: int = 1,
    isa: Isa | None = None,
) -> Tensor:
    """A 2-d convolution with zero padding.

    Args:
        input: [batch, in, height, width] float32, bfloat16 or float16 on the CPU; see `serves_convolution`.
        packed: a layer's buffer.
        shape: [out, in, kernel height, kernel width].
        bits: 1 to 7.
        bias: [out] of any floating dtype, added in float32.
        padding: [vertical, horizontal].
        stride: in both directions.
        isa: one of the library's `int8`, the best one where not given.

    Returns:
        [batch, out, height', width'] of `input`'s dtype.

    Raises:
        RuntimeError: no library.
        ValueError: sizes that do not fit, or an input that is not served.
    """
    x = input.contiguous()
    out = x.new_empty(_convolved(x, shape, padding, stride))
    offset = None if bias is None else bias.detach().float().contiguous()
    found = loaded()
    status = found.functions.bitsfusion_int8_convolution(
        packed.data_ptr(),
        packed.numel(),
        shape[0],
        bits,
        x.data_ptr(),
        x.shape[0],
        shape[1] if x.shape[1] == shape[1] else -1,
        x.shape[2],
        x.shape[3],
        shape[2],
        shape[3],
        padding[0],
        padding[1],
        stride,
        DTYPES.get(x.dtype, -1),
        None if offset is None else offset.data_ptr(),
        out.data_ptr(),
        found.int8[-1] if isa is None else isa,
        torch.get_num_threads(),
    )
    _check(status, input, shape, bits)
    return out


def _convolved(x: Tensor, shape: Sequence[int], padding: Sequence[int], stride: int) -> tuple[int, ...]:
    height, width = ((x.shape[2 + i] + 2 * padding[i] - shape[2 + i]) // stride + 1 for i in range(2))
    return x.shape[0], shape[0], height, width


def _check(status: int, input: Tensor, shape: Sequence[int], bits: int) -> None:
    if status:
        raise ValueError(
            f"int8 activations: got {input.dtype} {list(input.shape)} for b = {bits} and a weight of {list(shape)}"
        )


def _linear_shape(input: Tensor, packed: Tensor, shape: Sequence[int], bits: int, bias: Tensor | None) -> Tensor:
    return input.new_empty(*input.shape[:-1], shape[0])


def _convolution_shape(
    input: Tensor,
    packed: Tensor,
    shape: Sequence[int],
    bits: int,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: int,
) -> Tensor:
    return input.new_empty(_convolved(input, shape, padding, stride))


_library = torch.library.Library("bitsfusion", "FRAGMENT")
_arguments = "Tensor input, Tensor packed, SymInt[] shape, int bits, Tensor? bias"
for _name, _more, _run, _fake in (
    ("int8_linear", "", linear, _linear_shape),
    ("int8_convolution", ", SymInt[] padding, int stride", convolution, _convolution_shape),
):
    _library.define(f"{_name}({_arguments}{_more}) -> Tensor", tags=[torch.Tag.pt2_compliant_tag])
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"bitsfusion::{_name}", _fake, lib=_library)
