"""The Triton kernels in Triton's interpreter, in a process of its own (the switch is read when triton is imported)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitsfusion.kernels import reference, unpack
from bitsfusion.nn.packed import packed_buffer
from bitsfusion.numerics import half_levels


def test_interpreted() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.kernels.interpreted"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_compiles_for_a_device_that_is_not_here() -> None:
    compiler = pytest.importorskip("triton.compiler")
    from triton.backends.compiler import GPUTarget

    from bitsfusion.kernels.triton import _unpack

    types = {"codes": "*u8", "scales": "*fp32", "out": "*bf16", "numel": "i32", "width": "i32"}
    for wide, per_byte, levels, half in [(False, 5, 3, 1), (True, 1, 257, 128)]:
        constants = {"WIDE": wide, "PER_BYTE": per_byte, "LEVELS": levels, "HALF": half, "BLOCK": 1024}
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        source = compiler.ASTSource(fn=_unpack, signature=signature, constexprs=constants)
        assert ".entry _unpack" in compiler.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_on_a_device(bits: int, dtype: torch.dtype) -> None:
    half, shape = half_levels(bits), (70, 333)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-half, half + 1, shape, generator=generator)
    packed = packed_buffer(codes, torch.randn(70, generator=generator), bits)
    wanted = reference.unpack(packed, shape, bits, dtype)
    assert torch.equal(unpack(packed.cuda(), shape, bits, dtype).cpu(), wanted)
