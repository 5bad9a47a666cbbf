"""The fused layers against torch's own operations on the rounded weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bitsfusion.nn import fake_quantized
from bitsfusion.nn.fake_quantized import FakeQuantizedConv2d, FakeQuantizedLinear
from bitsfusion.numerics import fake_quantize, initial_scale

CONV = {"kernel_size": 3, "padding": 1}
CASES = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear, no bias": (lambda: nn.Linear(6, 5, bias=False), (4, 6)),
    "linear, tokens": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "conv": (lambda: nn.Conv2d(4, 5, **CONV), (2, 4, 6, 5)),
    "conv, 1 x 1": (lambda: nn.Conv2d(4, 5, 1, bias=False), (2, 4, 3, 3)),
    "conv, stride": (lambda: nn.Conv2d(4, 5, stride=2, **CONV), (2, 4, 6, 6)),
    "conv, groups": (lambda: nn.Conv2d(4, 6, groups=2, dilation=2, **CONV), (2, 4, 7, 7)),
    "conv, same": (lambda: nn.Conv2d(4, 5, 3, padding="same"), (2, 4, 6, 6)),
    "conv, reflect": (lambda: nn.Conv2d(4, 5, padding_mode="reflect", **CONV), (2, 4, 6, 6)),
}


def build(name: str, bits: int = 2) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    layer = make()
    kind = FakeQuantizedLinear if isinstance(layer, nn.Linear) else FakeQuantizedConv2d
    return kind.from_layer(layer, bits, initial_scale(layer.weight, bits)), torch.randn(shape)


def plain(layer: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """The layer's product by torch's own operations and the reference quantizer."""
    weight = fake_quantize(layer.weight, layer.scale, layer.bits)
    if isinstance(layer, nn.Linear):
        return functional.linear(input, weight, layer.bias)
    return layer._conv_forward(input, weight, layer.bias)


def run(forward, layer, input, dtype=None):
    """Output and the gradients of input and parameters, for a loss that weighs every output differently."""
    layer.zero_grad()
    input = input.clone().requires_grad_()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        output = forward(layer, input)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    return [output.detach(), input.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("name", CASES)
def test_equals_torch_on_the_rounded_weight(name):
    layer, input = build(name)
    ours, theirs = run(lambda layer, x: layer(x), layer, input), run(plain, layer, input)
    assert torch.equal(ours[0], theirs[0])
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linear, tokens", "conv"])
def test_autocast_gives_the_same_dtypes_and_values(name):
    layer, input = build(name)
    ours, theirs = (run(f, layer, input, torch.bfloat16) for f in (lambda layer, x: layer(x), plain))
    assert ours[0].dtype == torch.bfloat16
    assert torch.equal(ours[0], theirs[0])
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03)


def test_no_rounded_weight_is_kept_for_the_backward_pass():
    layer, input = build("linear")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(input.requires_grad_())
    own = {parameter.data_ptr() for parameter in layer.parameters()} | {input.data_ptr()}
    assert kept and all(tensor.data_ptr() in own for tensor in kept)


def test_layers_share_their_memory_without_harm():
    """A large layer between small ones, twice the same one, and a checkpointed one."""
    torch.manual_seed(0)
    sizes = [(6, 5), (5, 40), (40, 6), (6, 6)]
    layers = nn.ModuleList()
    for inner, outer in sizes:
        linear = nn.Linear(inner, outer)
        layers.append(FakeQuantizedLinear.from_layer(linear, 2, initial_scale(linear.weight, 2)))

    def through(step):
        def forward(model, x):
            for layer in [*layers, layers[3]]:
                x = torch.tanh(step(layer, x))
            return checkpoint(lambda y: step(layers[0], y), x, use_reentrant=False)

        return forward

    same = torch.randn(3, 6)
    for one, other in zip(
        run(through(lambda layer, x: layer(x)), layers, same), run(through(plain), layers, same), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_frozen_layers_and_evaluation_take_the_plain_way(monkeypatch):
    layer, input = build("linear")
    monkeypatch.setattr(fake_quantized, "fused_linear", None)
    with torch.no_grad():
        layer(input)
    layer.requires_grad_(False)(input.requires_grad_()).sum().backward()
    assert input.grad is not None
