"""Products on int8 activations against the same sums in plain torch, in float64 where they have to be exact."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitsfusion.kernels import int8
from bitsfusion.kernels.cpu.library import Isa, Missing, library
from bitsfusion.nn.packed import packed_buffer
from bitsfusion.numerics import half_levels

pytestmark = pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ISAS = () if isinstance(found := library(), Missing) else found.int8
each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)


def rounded_product(tokens: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The definition: q = round(x / t), t = max |x| / 127, sum(level q) scale t + bias. [..., in] -> [..., out]."""
    x = tokens.float()
    largest = x.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, torch.tensor(127.0).div(largest), torch.tensor(0.0))
    exact = (x * inverse).round().double() @ codes.double().T
    output = exact.float() * (scale * (largest / 127))
    return (output if bias is None else output + bias).to(tokens.dtype)


def layer(bits: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(bits)
    half = half_levels(bits)
    codes = torch.randint(-half, half + 1, shape, generator=generator)
    scale = torch.randn(shape[0], generator=generator)
    return codes, scale, packed_buffer(codes, scale, bits)


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", range(1, 8))
def test_linear(bits: int, dtype: torch.dtype, isa: Isa) -> None:
    for tokens, out, wide in [(1, 1, 1), (5, 7, 13), (13, 33, 64), (29, 70, 321), (50, 64, 320)]:
        codes, scale, packed = layer(bits, (out, wide))
        x = torch.randn(tokens, wide).to(dtype)
        x[0] = 0
        bias = torch.randn(out)
        for offset in (bias, None):
            made = int8.linear(x, packed, (out, wide), bits, offset, isa)
            assert torch.equal(made, rounded_product(x, codes, scale, offset)), (tokens, out, wide)


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", range(1, 8))
def test_convolution(bits: int, dtype: torch.dtype, isa: Isa) -> None:
    # images, in, out, height, width, kernel, padding, stride: rows of 4, 8, 12, 16, 24, 40, panels that end inside
    sizes = [
        (1, 3, 5, 8, 8, 3, 1, 1),
        (2, 7, 13, 4, 4, 3, 1, 1),
        (2, 16, 40, 16, 16, 3, 1, 1),
        (2, 4, 4, 5, 40, 3, 1, 1),
    ]
    sizes += [
        (1, 5, 30, 8, 24, 1, 0, 1),
        (1, 3, 3, 10, 14, 3, 0, 1),
        (2, 5, 7, 9, 16, 3, 1, 2),
        (1, 2, 3, 8, 22, 2, 1, 3),
    ]
    for images, channels, out, high, wide, kernel, pad, stride in sizes:
        codes, scale, packed = layer(bits, (out, channels, kernel, kernel))
        x = torch.randn(images, channels, high, wide).to(dtype)
        x[0, :, :3, :3] = 0
        bias = torch.randn(out)
        made = int8.convolution(x, packed, tuple(codes.shape), bits, bias, (pad, pad), stride, isa)
        patches = functional.unfold(x.float(), kernel, padding=pad, stride=stride).transpose(1, 2).to(dtype)
        wanted = rounded_product(patches, codes.flatten(1), scale, bias).transpose(1, 2).reshape(made.shape)
        assert torch.equal(made, wanted), (images, channels, out, high, wide, stride)


def test_many_panels_and_pieces() -> None:
    """More patches than exist at once, more output channels than a piece, two threads or one."""
    codes, scale, packed = layer(2, (100, 96, 3, 3))
    x = torch.randn(2, 96, 64, 64)
    wanted = rounded_product(functional.unfold(x, 3, padding=1).transpose(1, 2), codes.flatten(1), scale, None)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            made = int8.convolution(x, packed, tuple(codes.shape), 2, None, (1, 1))
            assert torch.equal(made.flatten(2).transpose(1, 2), wanted)
    finally:
        torch.set_num_threads(threads)


def test_layout_of_the_input_makes_no_difference() -> None:
    codes, _, packed = layer(3, (9, 6, 3, 3))
    x = torch.randn(2, 6, 8, 8)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        made = int8.convolution(other, packed, tuple(codes.shape), 3, None, (1, 1))
        assert torch.equal(made, int8.convolution(x, packed, tuple(codes.shape), 3, None, (1, 1)))


@pytest.mark.parametrize(
    ("x", "bits"),
    [(torch.zeros(3, 12), 1), (torch.zeros(3, 13), 2), (torch.zeros(3, 13, dtype=torch.float64), 1)],
    ids=["width", "bits", "dtype"],
)
def test_what_does_not_fit_is_refused(x: Tensor, bits: int) -> None:
    packed = layer(1, (7, 13))[2]
    with pytest.raises(ValueError, match="int8 activations: got"):
        int8.linear(x, packed, (7, 13), bits, None)


def test_opcheck() -> None:
    packed = layer(1, (7, 13))[2]
    linear = (torch.randn(3, 13), packed, (7, 13), 1, torch.randn(7))
    convolution = (torch.randn(1, 5, 8, 8), layer(2, (4, 5, 3, 3))[2], (4, 5, 3, 3), 2, None, (1, 1), 1)
    for name, arguments in (("int8_linear", linear), ("int8_convolution", convolution)):
        results = torch.library.opcheck(getattr(torch.ops.bitsfusion, name).default, arguments)
        assert set(results.values()) == {"SUCCESS"}
