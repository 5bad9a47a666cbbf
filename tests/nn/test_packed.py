"""Train = serve: what the packed layers compute with is the trained weight, bit for bit."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import nn

from bitsfusion.errors import InputError
from bitsfusion.kernels import int8
from bitsfusion.kernels.cpu.library import Missing
from bitsfusion.nn.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLayer, FakeQuantizedLinear
from bitsfusion.nn.packed import (
    PackedConv2d,
    PackedConv3d,
    PackedEmbedding,
    PackedLayer,
    PackedLinear,
    dense_layer,
    int8_activations,
    packed_buffer,
    packed_layer,
)
from bitsfusion.numerics import ScaleInit, dequantize, initial_scale, quantize

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def trained(kind: str, bits: int, **options: object) -> FakeQuantizedLayer:
    torch.manual_seed(bits)
    if kind == "linear":
        linear = nn.Linear(13, 7)
        return FakeQuantizedLinear.from_layer(linear, bits, initial_scale(linear.weight, bits, ScaleInit.EXACT))
    conv = nn.Conv2d(6, 9, 3, **options)  # type: ignore[arg-type]
    return FakeQuantizedConv2d.from_layer(conv, bits, initial_scale(conv.weight, bits, ScaleInit.EXACT))


def pack_layer(layer: FakeQuantizedLayer) -> PackedLayer:
    codes = quantize(layer.weight, layer.scale, layer.bits)
    return packed_layer(layer, layer.bits, packed_buffer(codes, layer.scale, layer.bits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_train_equals_serve(bits: int, kind: str, dtype: torch.dtype) -> None:
    layer = trained(kind, bits)
    packed = pack_layer(layer)
    assert torch.equal(packed.unpack_weight(dtype), layer.quantized_weight().detach().to(dtype))
    assert torch.equal(packed.unpack_weight(dtype, reuse=True), layer.quantized_weight().detach().to(dtype))
    assert torch.equal(packed.scale, layer.scale.detach())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_same_output(kind: str) -> None:
    layer = trained(kind, 2)
    packed = pack_layer(layer)
    value = torch.randn(3, 13) if kind == "linear" else torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        assert torch.equal(packed(value), layer(value))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_compiled_in_one_graph(kind: str, dtype: torch.dtype) -> None:
    packed = pack_layer(trained(kind, 3)).to(dtype)
    value = (torch.randn(3, 13) if kind == "linear" else torch.randn(2, 6, 8, 8)).to(dtype)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(value), packed(value))
    needs_grad = value.clone().requires_grad_()
    compiled(needs_grad).sum().backward()
    assert needs_grad.grad is not None and bool(needs_grad.grad.abs().sum() > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_causal_convolution_keeps_its_class_and_its_padding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = QwenImageCausalConv3d(3, 5, 3, padding=1)
    weight = layer.weight.detach()
    scale = initial_scale(weight, 2, ScaleInit.EXACT)
    codes = quantize(weight, scale, 2)
    packed = copy.deepcopy(packed_layer(layer, 2, packed_buffer(codes, scale, 2)).to(dtype))
    assert isinstance(packed, PackedConv3d) and isinstance(packed, QwenImageCausalConv3d)
    layer.weight.data = dequantize(codes, scale)
    frames, before = torch.randn(2, 3, 2, 6, 6).to(dtype), torch.randn(2, 3, 1, 6, 6).to(dtype)
    dense = dense_layer(packed)
    assert type(dense) is QwenImageCausalConv3d
    with torch.no_grad():
        for given in ((frames,), (frames, before)):
            wanted = layer.to(dtype)(*given)
            assert torch.equal(packed(*given), wanted) and torch.equal(dense(*given), wanted)


def embedding(bits: int) -> tuple[PackedEmbedding, torch.Tensor]:
    """Rows of 13 weights, so that no row of b = 1, 2, 3 or 8 begins on a byte of its own, and what they must be."""
    torch.manual_seed(bits)
    layer = nn.Embedding(11, 13, padding_idx=2)
    scale = initial_scale(layer.weight, bits, ScaleInit.EXACT)
    codes = quantize(layer.weight, scale, bits)
    return packed_layer(layer, bits, packed_buffer(codes, scale, bits)), dequantize(codes, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_an_embedding_looks_up_the_very_rows(bits: int, dtype: torch.dtype) -> None:
    packed, weight = embedding(bits)
    packed.to(dtype)
    index = torch.tensor([[0, 10, 2], [7, 7, 5]])
    wanted = weight.to(dtype)
    assert torch.equal(packed(index), wanted[index]) and torch.equal(packed(index.int()), wanted[index])
    assert torch.equal(packed(torch.tensor(3)), wanted[3]) and packed(index[:, :0]).shape == (2, 0, 13)
    assert torch.equal(packed.weight, wanted)
    dense = dense_layer(packed)
    assert type(dense) is nn.Embedding and dense.padding_idx == 2 and torch.equal(dense(index), wanted[index])
    with pytest.raises(IndexError):
        packed(torch.tensor([11]))


@pytest.mark.parametrize("bits", [2, 8])
def test_an_embedding_compiles_in_one_graph(bits: int) -> None:
    packed, weight = embedding(bits)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    index = torch.tensor([[0, 10, 2]])
    assert torch.equal(compiled(index), weight[index])


def test_an_embedding_that_changes_with_use_is_refused() -> None:
    with pytest.raises(InputError, match=r"max_norm: got 1\.0"):
        packed_layer(nn.Embedding(4, 4, max_norm=1.0), 4)


def test_threads_have_memory_of_their_own() -> None:
    """Two threads that serve at once do not overwrite each other's weights."""
    layers = [pack_layer(trained("linear", bits)) for bits in range(1, 9)]
    value = torch.randn(4, 13)
    with torch.no_grad():
        wanted = [layer(value) for layer in layers]

        def serve(_: int) -> bool:
            with torch.no_grad():
                return all(
                    torch.equal(layer(value), want)
                    for _ in range(50)
                    for layer, want in zip(layers, wanted, strict=True)
                )

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(serve, range(2)))


def test_convolution_geometry() -> None:
    layer = trained("conv", 3, stride=2, padding=1, dilation=2, groups=3, padding_mode="circular", bias=False)
    packed = pack_layer(layer)
    value = torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        assert torch.equal(packed(value), layer(value))
    assert packed.bias is None


def test_zero_scale_channel() -> None:
    linear = nn.Linear(5, 2)
    with torch.no_grad():
        linear.weight[0] = 0
    layer = FakeQuantizedLinear.from_layer(linear, 1, initial_scale(linear.weight, 1))
    assert torch.equal(pack_layer(layer).weight, layer.quantized_weight())


def test_kinds_parameters_and_state() -> None:
    linear, conv = pack_layer(trained("linear", 1)), pack_layer(trained("conv", 1))
    assert isinstance(linear, PackedLinear) and isinstance(linear, nn.Linear)
    assert isinstance(conv, PackedConv2d) and isinstance(conv, nn.Conv2d)
    assert list(linear.state_dict()) == ["bias", "packed"]
    assert linear.packed.shape == (4 * 7 + -(-13 * 7 // 5),)
    assert conv.packed.shape == (4 * 9 + -(-6 * 9 * 9 // 5),)


def test_empty_layer_on_meta_takes_what_a_loader_brings() -> None:
    layer = trained("conv", 8)
    with torch.device("meta"):
        bare = nn.Conv2d(6, 9, 3)
    empty = packed_layer(bare, 8)
    assert empty.packed.is_meta
    empty.load_state_dict(pack_layer(layer).state_dict(), assign=True)
    assert torch.equal(empty.weight, layer.quantized_weight())


def test_casting_the_module_never_touches_the_buffer() -> None:
    packed = pack_layer(trained("linear", 4))
    before = packed.packed.clone()
    half = copy.deepcopy(packed).to(torch.bfloat16)
    assert torch.equal(half.packed, before)
    assert half(torch.randn(2, 13, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_reach_the_input_through_two_layers() -> None:
    first, second = pack_layer(trained("conv", 2, padding=1)), pack_layer(trained("conv", 3, padding=1))
    weights = [first.weight.clone(), second.weight.clone()]
    value = torch.randn(1, 6, 5, 5, requires_grad=True)
    second(first(value)[:, :6]).sum().backward()
    expected = value.detach().requires_grad_()
    hidden = nn.functional.conv2d(expected, weights[0], first.bias, padding=1)[:, :6]
    nn.functional.conv2d(hidden, weights[1], second.bias, padding=1).sum().backward()
    assert torch.equal(value.grad, expected.grad)


def test_adapters_find_what_they_build_on() -> None:
    conv = pack_layer(trained("conv", 2))
    low_rank = type(conv)(6, 2, 3, padding=1, bias=False)
    assert type(low_rank) is nn.Conv2d and low_rank.weight.requires_grad
    assert conv.weight.shape == (9, 6, 3, 3) and isinstance(copy.deepcopy(conv), PackedConv2d)


def test_wrong_buffer() -> None:
    with pytest.raises(InputError, match=r"wanted torch.uint8 \[9\]"):
        packed_layer(nn.Linear(13, 1), 2, torch.zeros(3, dtype=torch.uint8))


rounding = pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))


@rounding
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_int8_activations_come_close_and_can_be_left_again(kind: str, compiled: bool) -> None:
    packed = pack_layer(trained(kind, 3, padding=1) if kind == "conv" else trained(kind, 3))
    value = torch.randn(30, 13) if kind == "linear" else torch.randn(2, 6, 8, 8)
    run = torch.compile(packed, fullgraph=True, backend="aot_eager") if compiled else packed
    with torch.no_grad():
        exact = packed(value)
        assert int8_activations(packed) == 1
        close = run(value)
        assert torch.equal(close, packed(value)) and not torch.equal(close, exact)
        assert (close - exact).norm() < 0.02 * exact.norm()
        int8_activations(packed, enabled=False)
        assert torch.equal(packed(value), exact)


@rounding
def test_int8_activations_leave_alone_what_they_do_not_serve() -> None:
    strided = pack_layer(trained("conv", 2, stride=(1, 2)))
    padded = pack_layer(trained("conv", 2, padding=1, padding_mode="circular"))
    narrow, eight = pack_layer(trained("conv", 2, padding=1)), pack_layer(trained("linear", 8))
    assert int8_activations(nn.ModuleList([strided, padded, narrow, eight])) == 3
    assert not eight.int8
    image, odd = torch.randn(1, 6, 16, 16), torch.randn(1, 6, 9, 9)
    for layer, value in ((strided, image), (padded, image), (narrow, odd), (eight, torch.randn(2, 13))):
        wanted = copy.deepcopy(layer)
        int8_activations(wanted, enabled=False)
        with torch.no_grad():
            assert torch.equal(layer(value), wanted(value))
    image.requires_grad_()
    narrow(image).sum().backward()
    assert image.grad is not None and bool(image.grad.abs().sum() > 0)


def test_int8_activations_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "library", lambda: Missing("not built"))
    with pytest.raises(InputError, match=r"int8 activations: got a CPU without them \(not built\)"):
        int8_activations(nn.Linear(2, 2))
