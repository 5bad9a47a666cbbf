"""Levels in ggml's block types, without loss: each block holds integers and one float16 scale.

A block's integers reach from -2^n to 2^n - 1, our levels from -2^(b-1) to 2^(b-1): one more. A block with the highest
level and not the lowest is stored with every sign turned, the scale's too; one with both does not fit. The layouts are
those of ggml (ggml-quants.c, and `gguf.quants` in Python, which the tests read them with).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.int16]

_QK_K = 256


@dataclass(frozen=True)
class BlockType:
    """One of ggml's types.

    Fields:
        name: ggml's.
        block: weights in a block.
        bytes: of a block.
        sub: weights that share a sign.
        low, high: the integers that it holds.
        write: integers [blocks, block] and signs [blocks, block / sub] -> bytes, without the scale.
        scale_first: whether the float16 scale precedes these bytes, or follows them.
    """

    name: str
    block: int
    bytes: int
    sub: int
    low: int
    high: int
    write: Callable[[Levels, Levels], Bytes]
    scale_first: bool = False
    twice: bool = False

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.bytes / self.block

    def signs(self, levels: Levels) -> Levels | None:
        """+1 or -1 for every `sub` weights, so that levels x sign lie within the range; None where they can't.

        Args:
            levels: [rows, columns].

        Returns:
            [blocks, block / sub] int16.
        """
        if levels.shape[-1] % self.block:
            return None
        groups = levels.reshape(-1, self.block // self.sub, self.sub)
        highest, lowest = groups.max(axis=-1), groups.min(axis=-1)
        as_is = (lowest >= self.low) & (highest <= self.high)
        turned = (-highest >= self.low) & (-lowest <= self.high)
        if not bool((as_is | turned).all()):
            return None
        return np.where(as_is, np.int16(1), np.int16(-1))

    def pack(self, levels: Levels, scale: npt.NDArray[np.float16], signs: Levels) -> Bytes:
        """The blocks of a matrix.

        Args:
            levels: [rows, columns].
            scale: [rows].
            signs: what `signs(levels)` gave.

        Returns:
            [rows, bytes].
        """
        rows, columns = levels.shape
        blocks = columns // self.block
        integers = (levels.reshape(-1, self.block // self.sub, self.sub) * signs[..., None]).reshape(-1, self.block)
        scales = np.repeat(scale, blocks)[:, None]
        if self.sub == self.block:  # the sign goes into the scale; in types with scales of their own it lies there
            scales = scales * signs.astype(np.float16)
        stored = np.ascontiguousarray(scales).view(np.uint8)
        stored = np.concatenate([stored, stored], axis=1) if self.twice else stored
        body = self.write(integers, signs)
        parts = [stored, body] if self.scale_first else [body, stored]
        return np.concatenate(parts, axis=1).reshape(rows, blocks * self.bytes)


def _tq1_0(integers: Levels, signs: Levels) -> Bytes:
    """Five ternary digits a byte, as a fraction of 243 in 256ths, so that a multiplication reads the next digit."""
    digits = (integers + 1).astype(np.uint16)

    def five(part: npt.NDArray[np.uint16], width: int, count: int) -> npt.NDArray[np.uint16]:
        powers = np.array([81, 27, 9, 3, 1][:count], dtype=np.uint16)
        return np.einsum("nkw,k->nw", part.reshape(len(part), count, width), powers).astype(np.uint16)

    values = np.concatenate(
        [five(digits[:, :160], 32, 5), five(digits[:, 160:240], 16, 5), five(digits[:, 240:], 4, 4)], axis=1
    )
    return ((values.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)


def _tq2_0(integers: Levels, signs: Levels) -> Bytes:
    return _twos((integers + 1).astype(np.uint8))


def _twos(values: Bytes) -> Bytes:
    """[blocks, 256] of two bits -> [blocks, 64]: in each 128, four runs of 32 share their bytes."""
    runs = values.reshape(len(values), 2, 4, 32)
    packed: Bytes = (runs << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]).sum(axis=2, dtype=np.uint8)
    return packed.reshape(len(values), 64)


def _q2_k(integers: Levels, signs: Levels) -> Bytes:
    """Every sub-block's factor and minimum is 1: the weight is scale x (level + 1) - scale."""
    factors = np.full((len(integers), 16), 0x11, dtype=np.uint8)
    return np.concatenate([factors, _twos((integers + 1).astype(np.uint8))], axis=1)


def _q3_k(integers: Levels, signs: Levels) -> Bytes:
    """The third bits, the two low bits, then factors of six bits each, plus 32."""
    values = (integers + 4).astype(np.uint8)
    thirds = (values >> 2).reshape(len(values), 8, 32)
    high: Bytes = (thirds << np.arange(8, dtype=np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)
    factors = (signs + 32).astype(np.uint8)
    low_nibbles = (factors[:, :8] & 15) | ((factors[:, 8:] & 15) << 4)
    tops = (factors >> 4).reshape(len(values), 4, 4)
    top_pairs: Bytes = (tops << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)
    return np.concatenate([high, _twos(values & np.uint8(3)), low_nibbles, top_pairs], axis=1)


def _nibbles(values: Bytes) -> Bytes:
    """[blocks, 32] of four bits -> [blocks, 16]: the first half low, the second high."""
    return values[:, :16] | (values[:, 16:] << np.uint8(4))


def _q4_0(integers: Levels, signs: Levels) -> Bytes:
    return _nibbles((integers + 8).astype(np.uint8))


def _q5_0(integers: Levels, signs: Levels) -> Bytes:
    values = (integers + 16).astype(np.uint8)
    fifths = np.packbits(values >> 4, axis=1, bitorder="little")
    return np.concatenate([fifths, _nibbles(values & np.uint8(15))], axis=1)


def _q6_k(integers: Levels, signs: Levels) -> Bytes:
    """Four low bits, two high bits, then a factor of eight bits for every sixteen."""
    values = (integers + 32).astype(np.uint8)
    halves = (values & 15).reshape(len(values), 2, 2, 64)
    low = (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(values), 128)
    return np.concatenate([low, _twos(values >> np.uint8(4)), signs.astype(np.int8).view(np.uint8)], axis=1)


def _q8_0(integers: Levels, signs: Levels) -> Bytes:
    return integers.astype(np.int8).view(np.uint8)


BLOCK_TYPES: Mapping[str, BlockType] = {
    made.name.lower(): made
    for made in (
        BlockType("TQ1_0", _QK_K, 54, _QK_K, -1, 1, _tq1_0),
        BlockType("TQ2_0", _QK_K, 66, _QK_K, -1, 1, _tq2_0),
        BlockType("Q2_K", _QK_K, 84, _QK_K, -1, 1, _q2_k, twice=True),
        BlockType("Q3_K", _QK_K, 110, 16, -4, 3, _q3_k),
        BlockType("Q4_0", 32, 18, 32, -8, 7, _q4_0, scale_first=True),
        BlockType("Q5_0", 32, 22, 32, -16, 15, _q5_0, scale_first=True),
        BlockType("Q6_K", _QK_K, 210, 16, -32, 31, _q6_k),
        BlockType("Q8_0", 32, 34, 32, -128, 127, _q8_0, scale_first=True),
    )
}
"""Those that are written, the smallest first, by their names in small letters."""
