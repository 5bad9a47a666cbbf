"""The one table of bits and bytes: a layer's cost by the paper's count, in memory and on disk (Appendix H)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitsfusion.errors import InputError
from bitsfusion.numerics.levels import level_bits
from bitsfusion.packing.layout import packed_size

SCALE_BYTES = 4  # float32, one per output channel
FEATURE_BITS = 16  # one cached time feature


def average_bits(weights: Mapping[str, int], bits: Mapping[str, int], feature_values: int) -> float:
    """Appendix H: ( sum_i log2(2^b_i + 1) N_i + 16 N_tf ) / N_w.

    Args:
        weights: the number of weights of ALL linear and conv layers, the removed time layers included (N_w).
        bits: the kept layers' b; a layer of `weights` without bits counts as removed.
        feature_values: how many time features are cached (N_tf).

    Raises:
        InputError: bits for a layer that `weights` does not have.
    """
    unknown = [name for name in bits if name not in weights]
    if unknown:
        raise InputError(f"bits: got layer {unknown[0]}, wanted only layers of the model")
    total = sum(weights.values())
    if total == 0:
        raise InputError("weights: got no weights, wanted at least one layer")
    return (sum(level_bits(b) * weights[name] for name, b in bits.items()) + FEATURE_BITS * feature_values) / total


@dataclass(frozen=True)
class LayerSize:
    """The sizes of one packed layer that follow from its shape alone.

    Fields:
        bits: b.
        weights: N.
        out_channels: how many scales.
    """

    bits: int
    weights: int
    out_channels: int

    @property
    def scale_bytes(self) -> int:
        """float32 scales: 4 bytes an output channel, as in memory and as inside their zstd frame."""
        return SCALE_BYTES * self.out_channels

    @property
    def code_bytes(self) -> int:
        """Radix bytes, as in memory and as inside the zstd frame."""
        return packed_size(self.weights, self.bits)

    @property
    def bytes_in_memory(self) -> int:
        """Scales and radix bytes: the layer's one uint8 buffer."""
        return self.scale_bytes + self.code_bytes


@dataclass(frozen=True)
class FileBytes:
    """Where every byte of a packed model's weight file is; `total` is the file's size on disk.

    Fields:
        weights: the zstd frames of the layers' radix bytes.
        scales: the zstd frames of the layers' float32 scales, and 4 bytes each for their length.
        time_features: the cached rows, 16 bits a value.
        other: biases, norms and the like.
        header: the container's own: names, shapes, offsets.
    """

    weights: int
    scales: int
    time_features: int
    other: int
    header: int

    @property
    def total(self) -> int:
        """The sum of all fields."""
        return self.weights + self.scales + self.time_features + self.other + self.header
