"""Fake quantization's Triton kernels, compiled; in Triton's interpreter they are in test_triton.py."""

from __future__ import annotations

import pytest
import torch

from bitsfusion import numerics
from bitsfusion.kernels.fake_quantize import fake_quantize

from .test_fake_quantize import case, run


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
