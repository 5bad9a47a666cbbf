"""Fake quantization's Triton kernels in Triton's interpreter, in a process of its own; and compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from bitsfusion import numerics
from bitsfusion.kernels.fake_quantize import fake_quantize

from .test_fake_quantize import case, run

PROGRAM = """
import sys
import torch
from bitsfusion import numerics
from bitsfusion.kernels import triton_fake_quantize as kernels
from tests.kernels.test_fake_quantize import case

for bits in range(1, 9):
    for shape in [(1, 1), (5, 13), (4, 3, 3, 3), (3, 1031), (2, 2048)]:
        weight, scale, grad = case(shape, bits)
        weight.view(-1)[0] = float("nan")
        wanted = numerics.fake_quantize(weight, scale, bits)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            got = kernels.rounded(weight, scale, bits, torch.empty_like(weight, dtype=dtype))
            if not torch.equal(got.nan_to_num(7e3), wanted.to(dtype).nan_to_num(7e3)):
                sys.exit(f"b = {bits}, {shape}, {dtype}: not the reference")
        weight.view(-1)[0] = 0.1
        for grad_dtype in (torch.float32, torch.bfloat16):
            given = grad.to(grad_dtype)
            ours = kernels.gradients(weight, scale, bits, given)
            theirs = numerics.fake_quantize_gradients(weight, scale, bits, given.float())
            if not torch.equal(ours[0], theirs[0]):
                sys.exit(f"b = {bits}, {shape}, {grad_dtype}: another gradient of the weight")
            half = numerics.half_levels(bits)
            rounding = 1e-5 * half * given.float().abs().flatten(1).sum(1) / (weight[0].numel() * half) ** 0.5
            if not (ours[1] - theirs[1]).abs().le(rounding).all():
                sys.exit(f"b = {bits}, {shape}, {grad_dtype}: another gradient of the scale")
print("equal")
"""


def test_interpreted() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "equal\n"


def test_compiles_for_a_device_that_is_not_here() -> None:
    compiler = pytest.importorskip("triton.compiler")
    from triton.backends.compiler import GPUTarget

    from bitsfusion.kernels.triton_fake_quantize import _backward, _round

    sizes = {"numel": "i32", "width": "i32"}
    rounding = {"weights": "*fp32", "scales": "*fp32", "out": "*bf16", **sizes}
    grads = {"grads": "*bf16", "grad_weights": "*fp32", "grad_scales": "*fp32"}
    back = {"weights": "*fp32", "scales": "*fp32", **grads, "width": "i32", "factor": "fp32"}
    constants = {"HALF": 2, "BLOCK": 1024}
    for kernel, types in ((_round, rounding), (_backward, back)):
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        ptx = compiler.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
        assert "div.rn.f32" in ptx, "w / s has to be rounded as on the CPU"
        assert "fma" not in ptx or kernel is _backward, "level x scale is rounded once, after whole levels"


@pytest.mark.gpu
@pytest.mark.parametrize("bits", range(1, 9))
def test_on_a_device(bits: int) -> None:
    weight, scale, grad = (tensor.cuda() for tensor in case((70, 333), bits))
    ours, theirs = (run(f, weight, scale, bits, grad) for f in (fake_quantize, numerics.fake_quantize))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-4)
