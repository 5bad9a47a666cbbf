"""Linear, convolution and embedding layers that hold real bits and unpack them on every forward."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.errors import InputError
from bitsfusion.kernels import int8, unpack_into
from bitsfusion.nn.fake_quantized import conv_geometry
from bitsfusion.nn.read_only import ReadOnlyWeight
from bitsfusion.nn.scratch import scratch
from bitsfusion.numerics import check_bits
from bitsfusion.packing.accounting import LayerSize
from bitsfusion.packing.radix import pack, unpack, unpack_at


def packed_buffer(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """A layer's one buffer: [4 * out bytes of little-endian float32 scales][radix bytes].

    Scales live inside the bytes because every loader casts floating tensors and none casts uint8.

    Args:
        codes: integers [out, ...].
        scale: [out] float32.

    Returns:
        uint8 [4 * out + packed_size(codes.numel(), bits)].
    """
    scales = scale.detach().to("cpu", torch.float32).contiguous()
    return torch.cat([scales.view(torch.uint8), pack(codes.cpu(), bits)])


class _Packed:
    """What all kinds share; `packed` is the buffer, `weight_shape` the weight's shape."""

    bits: int
    weight_shape: tuple[int, ...]
    packed: Tensor
    compute_dtype: torch.dtype
    int8: bool = False  # activations rounded to int8, see `int8_activations`

    @property
    def scale(self) -> Tensor:
        """[out] float32, read from the buffer."""
        return self.packed[: 4 * self.weight_shape[0]].view(torch.float32)

    @property
    def codes(self) -> Tensor:
        """The levels, int16 of the weight's shape."""
        numel = math.prod(self.weight_shape)
        return unpack(self.packed[4 * self.weight_shape[0] :], numel, self.bits).view(self.weight_shape)

    @property
    def weight(self) -> Tensor:
        """The unpacked weight in `compute_dtype`: fresh, there to be looked at; it refuses to be written to."""
        weight = self.unpack_weight(self.compute_dtype)
        return weight if torch.compiler.is_compiling() else weight.as_subclass(ReadOnlyWeight)

    def unpack_weight(self, dtype: torch.dtype, reuse: bool = False) -> Tensor:
        """level x scale in float32, then cast to `dtype`: `torch.equal` to the fake-quantized weight cast likewise.

        Args:
            dtype: of the result.
            reuse: write to memory that the next layer's call of the same thread overwrites.

        Returns:
            [out, ...] of the weight's shape.
        """
        if torch.compiler.is_compiling() or self.packed.is_meta:
            weight: Tensor = torch.ops.bitsfusion.unpack(self.packed, self.weight_shape, self.bits, dtype)
            return weight
        make = scratch if reuse else _fresh
        weight = make(math.prod(self.weight_shape), dtype, self.packed.device).view(self.weight_shape)
        unpack_into(self.packed, self.weight_shape, self.bits, weight)
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What `.to`, `.half` and so on go through: `compute_dtype` follows the floating parameters."""
        super()._apply(fn, recurse)  # type: ignore[misc]
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def _rounds(self, input: Tensor) -> bool:
        """Whether this input may be rounded to int8; no backward goes through that."""
        return self.int8 and not (torch.is_grad_enabled() and input.requires_grad)

    def _serving_weight(self, input: Tensor) -> Tensor:
        """The weight for one forward; memory is reused only where no backward will ask for it."""
        reuse = not (torch.is_grad_enabled() and input.requires_grad)
        with torch.no_grad():
            return self.unpack_weight(input.dtype, reuse)


def _fresh(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(numel, dtype=dtype, device=device)


def _prepare(made: nn.Module, layer: nn.Module, names: tuple[str, ...], bits: int, packed: Tensor | None) -> None:
    """Gives `made` the geometry and bias of `layer` and its buffer (on meta where `packed` is None)."""
    nn.Module.__init__(made)
    for name in names:
        setattr(made, name, getattr(layer, name))
    weight: Tensor = layer.weight  # type: ignore[assignment]
    made.bits = check_bits(bits)  # type: ignore[assignment]
    made.weight_shape = tuple(weight.shape)  # type: ignore[assignment]
    made.compute_dtype = torch.float32  # type: ignore[assignment]
    size = LayerSize(bits, weight.numel(), weight.shape[0]).bytes_in_memory
    if packed is None:
        packed = torch.empty(size, dtype=torch.uint8, device="meta")
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise InputError(f"packed: got {packed.dtype} {list(packed.shape)}, wanted torch.uint8 [{size}]")
    made.register_buffer("packed", packed)
    made.register_parameter("bias", getattr(layer, "bias", None))
    made.train(layer.training)


class PackedLinear(_Packed, nn.Linear):  # type: ignore[override]
    """A linear layer on packed bits. Buffer: packed uint8; parameter: bias [out] or None; no weight parameter.

    `weight` is a property that unpacks, so that adapters (LoRA) which look at it find what they expect.
    """

    def __init__(self, layer: nn.Linear, bits: int, packed: Tensor | None = None) -> None:
        """Takes over `layer`'s geometry and bias; `packed` (see `packed_buffer`) is on meta where not given."""
        _prepare(self, layer, ("in_features", "out_features"), bits, packed)

    def forward(self, input: Tensor) -> Tensor:
        if self._rounds(input) and int8.serves(input):
            run = torch.ops.bitsfusion.int8_linear if torch.compiler.is_compiling() else int8.linear
            output: Tensor = run(input, self.packed, self.weight_shape, self.bits, self.bias)
            return output
        return functional.linear(input, self._serving_weight(input), self.bias)


class PackedConv2d(_Packed, nn.Conv2d):  # type: ignore[override]
    """A 2-d convolution on packed bits. Buffer: packed uint8; parameter: bias [out] or None; no weight parameter."""

    def __new__(cls, layer: nn.Conv2d | int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Adapters (PEFT) build their own convolution by calling the type of the one they adapt: that one is dense."""
        return nn.Conv2d(layer, *args, **kwargs) if isinstance(layer, int) else super().__new__(cls)

    def __init__(self, layer: nn.Conv2d, bits: int, packed: Tensor | None = None) -> None:
        """Takes over `layer`'s geometry and bias; `packed` (see `packed_buffer`) is on meta where not given."""
        _prepare(self, layer, _CONV_GEOMETRY, bits, packed)

    def forward(self, input: Tensor) -> Tensor:
        padding, stride = self._plain_padding(), self.stride[0]
        if (
            self._rounds(input)
            and padding is not None
            and int8.serves_convolution(input, self.kernel_size, padding, stride)
        ):
            run = torch.ops.bitsfusion.int8_convolution if torch.compiler.is_compiling() else int8.convolution
            output: Tensor = run(input, self.packed, self.weight_shape, self.bits, self.bias, padding, stride)
            return output
        return self._conv_forward(input, self._serving_weight(input), self.bias)

    def _plain_padding(self) -> tuple[int, ...] | None:
        """The padding, if nothing but zeros lies around and the stride is one number: what the int8 kernel does."""
        plain = self.stride[0] == self.stride[1] and self.dilation == (1, 1) and self.groups == 1
        return self.padding if plain and self.padding_mode == "zeros" and isinstance(self.padding, tuple) else None


class PackedConv3d(_Packed, nn.Conv3d):  # type: ignore[override]
    """A 3-d convolution on packed bits. Buffer: packed uint8; parameter: bias [out] or None; no weight parameter.

    An instance is of its dense layer's class besides and computes by that one's forward: those of video autoencoders
    pad in time, and the autoencoders count them by class.

    Fields:
        dense_kind: the dense layer's class.
    """

    dense_kind: type[nn.Conv3d]

    def __new__(cls, layer: nn.Conv3d | None = None, *args: Any, **kwargs: Any) -> Any:
        kind: Any = type(layer)
        return super().__new__(cls if layer is None else _packed_kind(kind))

    def __init__(self, layer: nn.Conv3d, bits: int, packed: Tensor | None = None) -> None:
        """Takes over `layer`'s attributes and bias; `packed` (see `packed_buffer`) is on meta where not given."""
        _prepare(self, layer, _own_attributes(layer), bits, packed)

    def dense(self) -> nn.Conv3d:
        """The ordinary layer with the unpacked weight in `compute_dtype` and the same bias."""
        made = self.dense_kind.__new__(self.dense_kind)
        nn.Module.__init__(made)
        for name in _own_attributes(self):
            if name not in _PACKED_ATTRIBUTES:
                setattr(made, name, getattr(self, name))
        made.weight = nn.Parameter(self.unpack_weight(self.compute_dtype))
        made.bias = self.bias
        return made.train(self.training)


@functools.cache
def _packed_kind(kind: type[nn.Conv3d]) -> type[PackedConv3d]:
    """The class of packed layers that stand for layers of `kind`."""
    return type(f"Packed{kind.__name__}", (PackedConv3d, kind), {"dense_kind": kind, "__doc__": PackedConv3d.__doc__})


def _own_attributes(layer: nn.Module) -> tuple[str, ...]:
    """What a layer holds beside what every module does: its geometry."""
    return tuple(name for name in vars(layer) if name not in vars(nn.Module()))


_PACKED_ATTRIBUTES = ("bits", "weight_shape", "compute_dtype")
_CONV_GEOMETRY = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)


class PackedEmbedding(_Packed, nn.Embedding):  # type: ignore[override]
    """An embedding on packed bits, a scale a row. Buffer: packed uint8; no weight parameter.

    A forward unpacks the rows that it looks up and no others. Rows come in `compute_dtype`; no gradient reaches them.
    """

    def __init__(self, layer: nn.Embedding, bits: int, packed: Tensor | None = None) -> None:
        """Takes over `layer`'s sizes; `packed` (see `packed_buffer`) is on meta where not given.

        Raises:
            InputError: `layer` has a max_norm: its look-ups would change the weight.
        """
        if layer.max_norm is not None:
            raise InputError(f"max_norm: got {layer.max_norm} in an embedding, wanted none: packed rows do not change")
        _prepare(self, layer, _EMBEDDING_GEOMETRY, bits, packed)
        self.scalar_embed_scale: float | None = getattr(layer, "scalar_embed_scale", None)

    def forward(self, input: Tensor) -> Tensor:
        """[...] row numbers -> [..., embedding_dim]: the very rows of `weight`."""
        rows, width = self.weight_shape
        places = input.long()[..., None] * width + torch.arange(width, device=input.device)
        levels = unpack_at(self.packed[4 * rows :], rows * width, self.bits, places)
        looked_up = levels.float().mul_(self.scale[input.long()][..., None]).to(self.compute_dtype)
        return scaled(looked_up, self.scalar_embed_scale)


def scaled(rows: Tensor, factor: float | None) -> Tensor:
    """Rows as Gemma's embeddings give them: times a number that is rounded to their dtype; None leaves them."""
    return rows if factor is None else rows * torch.tensor(factor).to(rows.device, rows.dtype)


class ScaledEmbedding(nn.Embedding):
    """An ordinary embedding whose rows are multiplied by `scalar_embed_scale`."""

    scalar_embed_scale: float

    def forward(self, input: Tensor) -> Tensor:
        return scaled(super().forward(input), self.scalar_embed_scale)


_EMBEDDING_GEOMETRY = (
    "num_embeddings",
    "embedding_dim",
    "padding_idx",
    "max_norm",
    "norm_type",
    "scale_grad_by_freq",
    "sparse",
)

PackedLayer: TypeAlias = PackedLinear | PackedConv2d | PackedConv3d | PackedEmbedding
PACKED_LAYERS = (PackedLinear, PackedConv2d, PackedConv3d, PackedEmbedding)
DenseLayer: TypeAlias = nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding


def packed_layer(layer: DenseLayer, bits: int, packed: Tensor | None = None) -> PackedLayer:
    """The packed form of a dense layer; with `packed` None an empty one on meta for a loader to fill."""
    if isinstance(layer, nn.Embedding):
        return PackedEmbedding(layer, bits, packed)
    if isinstance(layer, nn.Conv3d):
        return PackedConv3d(layer, bits, packed)
    return PackedLinear(layer, bits, packed) if isinstance(layer, nn.Linear) else PackedConv2d(layer, bits, packed)


def dense_layer(layer: PackedLayer) -> DenseLayer:
    """The ordinary layer with the unpacked weight in `compute_dtype` and the same bias."""
    if isinstance(layer, PackedEmbedding):
        weight = layer.unpack_weight(layer.compute_dtype)
        kind = nn.Embedding if layer.scalar_embed_scale is None else ScaledEmbedding
        embedding = kind.from_pretrained(weight, freeze=False, padding_idx=layer.padding_idx).train(layer.training)
        if isinstance(embedding, ScaledEmbedding) and layer.scalar_embed_scale is not None:
            embedding.scalar_embed_scale = layer.scalar_embed_scale
        return embedding
    if isinstance(layer, PackedConv3d):
        return layer.dense()
    if isinstance(layer, PackedLinear):
        made: nn.Linear | nn.Conv2d = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    else:
        made = nn.Conv2d(**conv_geometry(layer), bias=False, device="meta")
    made.weight = nn.Parameter(layer.unpack_weight(layer.compute_dtype))
    made.bias = layer.bias
    return made.train(layer.training)


def int8_activations(model: nn.Module, enabled: bool = True) -> int:
    """Switches packed layers to activations rounded to int8 while they run, in place: about half the time, not exact.

    Each token (in a convolution each patch) has a scale of its own; weights are not rounded. Layers of b = 8 are left
    as they are. So is, call by call, what the kernel does not do: a dilation or groups, an output width that is no
    multiple of 4, another device, an input that needs a gradient.

    Args:
        model: with packed layers anywhere in it.
        enabled: False switches back.

    Returns:
        How many layers were switched.

    Raises:
        InputError: this processor or installation cannot; says why.
    """
    reason = int8.why_not()
    if enabled and reason is not None:
        raise InputError(f"int8 activations: got a CPU without them ({reason}), wanted AVX-512 VNNI or AVX2")
    layers = [
        module
        for module in model.modules()
        if isinstance(module, (PackedLinear, PackedConv2d)) and module.bits <= int8.LARGEST_BITS
    ]
    for layer in layers:
        layer.int8 = enabled
    return len(layers)
