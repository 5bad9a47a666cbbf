"""The operator: what tracing sees of it, and which implementation it calls."""

import pytest
import torch

from bitsfusion import kernels
from bitsfusion.kernels import dispatch, reference
from bitsfusion.kernels.cpu.library import Isa, Library, Missing, library
from bitsfusion.nn.packed import packed_buffer
from bitsfusion.numerics import half_levels

SHAPE = (6, 5, 3, 3)
unpack = torch.ops.bitsfusion.unpack


def packed_layer(bits: int) -> torch.Tensor:
    half = half_levels(bits)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-half, half + 1, SHAPE, generator=generator)
    return packed_buffer(codes, torch.randn(SHAPE[0], generator=generator), bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_equals_the_reference(bits: int, dtype: torch.dtype) -> None:
    packed = packed_layer(bits)
    made = unpack(packed, SHAPE, bits, dtype)
    assert made.dtype == dtype and torch.equal(made, reference.unpack(packed, SHAPE, bits, dtype))


@pytest.mark.parametrize("bits", [1, 8])
def test_opcheck(bits: int) -> None:
    results = torch.library.opcheck(unpack.default, (packed_layer(bits), SHAPE, bits, torch.bfloat16))
    assert set(results.values()) == {"SUCCESS"}


def test_on_meta_only_the_shape_is_made() -> None:
    made = unpack(packed_layer(2).to("meta"), SHAPE, 2, torch.float16)
    assert made.is_meta and made.shape == SHAPE and made.dtype == torch.float16


def test_compiled_whole() -> None:
    packed = packed_layer(3)

    def doubled(packed: torch.Tensor) -> torch.Tensor:
        return 2 * unpack(packed, SHAPE, 3, torch.float32)

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(packed), doubled(packed))


def test_out_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="got 7 elements, wanted 270"):
        kernels.unpack_into(packed_layer(2), SHAPE, 2, torch.empty(7))


def test_available_names_what_serves() -> None:
    served = kernels.available()
    found = library()
    if isinstance(found, Library):
        assert served["cpu"].name == found.isas[-1].name.lower()
        assert (served["cpu"].why is None) == (found.isas[-1] != Isa.SCALAR)
    else:
        assert served["cpu"] == kernels.Implementation("reference", found.reason)
    if not torch.cuda.is_available():
        assert served["cuda"] == kernels.Implementation("reference", "torch finds no CUDA device")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_layer(2)
    expected = unpack(packed, SHAPE, 2, torch.bfloat16)
    monkeypatch.setattr(dispatch, "library", lambda: Missing("not built"))
    assert torch.equal(unpack(packed, SHAPE, 2, torch.bfloat16), expected)
    assert kernels.available()["cpu"] == kernels.Implementation("reference", "not built")
    assert kernels.note() == "CPU kernels: reference (not built)"
