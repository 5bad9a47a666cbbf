"""Every instruction set that this machine has, forced one by one, against level x scale in torch."""

import os
import signal
from pathlib import Path

import pytest
import torch

from bitsfusion.kernels import reference
from bitsfusion.kernels.cpu.library import Isa, Library, Missing, library, load, unpack_into
from bitsfusion.nn.packed import packed_buffer
from bitsfusion.numerics import dequantize, half_levels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows that start at every digit of a byte, vectors that end with the buffer, one weight, many weights.
SHAPES = [(1, 1), (1, 5), (3, 7), (2, 2, 5), (5, 13), (9, 6, 3, 3), (1, 161), (4, 321), (11, 333), (33, 97), (16, 320)]
found = library()
needs_library = pytest.mark.skipif(isinstance(found, Missing), reason=str(found))
ISAS = found.isas if isinstance(found, Library) else (Isa.SCALAR,)


def layer(bits: int, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of both signs: a zero one, tiny ones whose weights are subnormal, large ones that overflow."""
    generator = torch.Generator().manual_seed(seed)
    half = half_levels(bits)
    codes = torch.randint(-half, half + 1, shape, generator=generator)
    exponents = torch.randint(-44, 6, (shape[0],), generator=generator)
    scale = torch.randn(shape[0], generator=generator) * 10.0**exponents
    scale[shape[0] // 2] = 0.0
    codes.view(-1)[:: max(1, codes.numel() // 3)] = half
    return codes, scale


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("bits", range(1, 9))
def test_equals_level_times_scale(bits: int, isa: Isa, dtype: torch.dtype) -> None:
    for seed, shape in enumerate(SHAPES):
        codes, scale = layer(bits, shape, seed)
        packed = packed_buffer(codes, scale, bits)
        wanted = dequantize(codes, scale, dtype)
        for threads in (1, 2):
            out = torch.full(shape, 7.0, dtype=dtype)
            unpack_into(packed, shape, bits, out, isa, threads)
            assert torch.equal(out, wanted), (shape, threads)
        assert torch.equal(reference.unpack(packed, shape, bits, dtype), wanted), shape


@needs_library
def test_every_half_is_rounded_to_even() -> None:
    """Scales beside the points halfway between two values of the dtype, in both 16-bit dtypes."""
    generator = torch.Generator().manual_seed(0)
    halfway = torch.randint(-(2**31), 2**31 - 1, (4096,), generator=generator).int() & ~0x1FFF
    scale = (halfway + torch.randint(-1, 2, (4096,), generator=generator).int()).view(torch.float32)
    scale = scale[torch.isfinite(scale)]
    codes = torch.ones(len(scale), 40, dtype=torch.int16)
    for bits in (1, 5):
        packed = packed_buffer(codes, scale, bits)
        for dtype in (torch.bfloat16, torch.float16):
            for isa in ISAS:
                out = torch.empty(codes.shape, dtype=dtype)
                unpack_into(packed, tuple(codes.shape), bits, out, isa)
                assert torch.equal(out, dequantize(codes, scale, dtype)), (bits, dtype, isa)


@needs_library
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("bits", range(1, 9))
def test_neither_reads_nor_writes_beyond(bits: int, isa: Isa) -> None:
    """Neighbours of `out` keep their values, and bytes after the buffer make no difference."""
    shape = (3, 67)
    codes, scale = layer(bits, shape, bits)
    packed = packed_buffer(codes, scale, bits)
    results = []
    for filler in (0, 255):
        room = torch.full((packed.numel() + 64,), filler, dtype=torch.uint8)
        room[: packed.numel()] = packed
        out = torch.full((3 * 67 + 64,), 7.0, dtype=torch.bfloat16)
        unpack_into(room[: packed.numel()], shape, bits, out[32 : 32 + 3 * 67], isa)
        assert bool((out[:32] == 7).all() and (out[-32:] == 7).all())
        results.append(out[32:-32])
    assert torch.equal(*results)


@needs_library
def test_a_forked_process_unpacks_with_threads() -> None:
    """OpenMP's workers do not survive a fork; the child must not wait for them."""
    codes, scale = layer(1, (64, 2000), 0)
    packed = packed_buffer(codes, scale, 1)
    wanted = dequantize(codes, scale, torch.bfloat16)
    out = torch.empty(codes.shape, dtype=torch.bfloat16)
    unpack_into(packed, tuple(codes.shape), 1, out, threads=2)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        out = torch.empty(codes.shape, dtype=torch.bfloat16)
        unpack_into(packed, tuple(codes.shape), 1, out, threads=2)
        os._exit(0 if out.view(torch.int16).numpy().tobytes() == wanted.view(torch.int16).numpy().tobytes() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_library
def test_sizes_that_do_not_fit_are_refused() -> None:
    packed = torch.zeros(4 * 3 + 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="got 17 bytes for b = 1"):
        unpack_into(packed, (3, 9), 1, torch.empty(3, 9))
    with pytest.raises(ValueError, match="wanted contiguous uint8"):
        unpack_into(packed.float(), (3, 8), 1, torch.empty(3, 8))


@needs_library
def test_unknown_instruction_set_is_refused() -> None:
    absent = next(isa for isa in Isa if isa not in ISAS)
    with pytest.raises(RuntimeError, match="wanted one of SCALAR"):
        unpack_into(torch.zeros(5, dtype=torch.uint8), (1, 5), 1, torch.empty(1, 5), absent)


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    file = tmp_path / "_native.so"
    file.write_bytes(b"not a library")
    found = load(file)
    assert isinstance(found, Missing) and found.reason.startswith("_native.so does not load")
