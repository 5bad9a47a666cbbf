"""The Triton kernels against their references, in Triton's interpreter. Run by test_triton.py.

TRITON_INTERPRET=1 python -m tests.kernels.interpreted
"""

from __future__ import annotations

import sys

import torch

from bitsfusion import numerics
from bitsfusion.kernels import reference, triton, triton_fake_quantize
from bitsfusion.nn.packed import packed_buffer
from bitsfusion.numerics import half_levels

from .test_fake_quantize import case

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_unpacking(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    half = half_levels(bits)
    for shape in [(1, 1), (5, 13), (3, 7, 3, 3), (4, 321)]:
        codes = torch.randint(-half, half + 1, shape, generator=generator)
        scale = torch.randn(shape[0], generator=generator)
        scale[0] = 0
        packed = packed_buffer(codes, scale, bits)
        for dtype in DTYPES:
            out = torch.full(shape, 7.0, dtype=dtype)
            triton.unpack_into(packed, shape, bits, out)
            if not torch.equal(out, reference.unpack(packed, shape, bits, dtype)):
                sys.exit(f"b = {bits}, {shape}, {dtype}: not the reference")


def check_fake_quantization(bits: int) -> None:
    kernels = triton_fake_quantize
    for shape in [(1, 1), (5, 13), (4, 3, 3, 3), (3, 1031), (2, 2048)]:
        weight, scale, grad = case(shape, bits)
        weight.view(-1)[0] = float("nan")
        wanted = numerics.fake_quantize(weight, scale, bits)
        for dtype in DTYPES:
            got = kernels.rounded(weight, scale, bits, torch.empty_like(weight, dtype=dtype))
            if not torch.equal(got.nan_to_num(7e3), wanted.to(dtype).nan_to_num(7e3)):
                sys.exit(f"b = {bits}, {shape}, {dtype}: not rounded as the reference")
        weight.view(-1)[0] = 0.1
        for grad_dtype in (torch.float32, torch.bfloat16):
            given = grad.to(grad_dtype)
            ours = kernels.gradients(weight, scale, bits, given)
            theirs = numerics.fake_quantize_gradients(weight, scale, bits, given.float())
            if not torch.equal(ours[0], theirs[0]):
                sys.exit(f"b = {bits}, {shape}, {grad_dtype}: another gradient of the weight")
            half = half_levels(bits)
            rounding = 1e-5 * half * given.float().abs().flatten(1).sum(1) / (weight[0].numel() * half) ** 0.5
            if not (ours[1] - theirs[1]).abs().le(rounding).all():
                sys.exit(f"b = {bits}, {shape}, {grad_dtype}: another gradient of the scale")


if __name__ == "__main__":
    for count in range(1, 9):
        check_unpacking(count)
        check_fake_quantization(count)
