"""Block types: what gguf's own dequantization reads is level x scale, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from bitsfusion.exporting.gguf_blocks import BLOCK_TYPES, Levels


def drawn(name: str, seed: int = 0, rows: int = 6) -> Levels:
    """Levels over the whole range of a type, highest or lowest alone in each 16."""
    kind = BLOCK_TYPES[name]
    random = np.random.default_rng(seed)
    levels = random.integers(kind.low, kind.high + 1, (rows, 512)).astype(np.int16)
    turn = random.choice(np.array([1, -1], dtype=np.int16), (rows, 512 // kind.sub))
    return levels * turn.repeat(kind.sub, axis=1)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_what_gguf_reads(name: str) -> None:
    kind = BLOCK_TYPES[name]
    levels = drawn(name)
    scale = np.array([0.5, -0.0123, 1e-4, 0.0, 6.1e-5, 300.0], dtype=np.float16)
    signs = kind.signs(levels)
    assert signs is not None
    packed = kind.pack(levels, scale, signs)
    ggml = gguf.GGMLQuantizationType[kind.name]
    assert gguf.GGML_QUANT_SIZES[ggml] == (kind.block, kind.bytes)
    read = gguf.dequantize(packed, ggml)
    assert np.array_equal(read, levels * scale.astype(np.float32)[:, None])


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_what_does_not_fit(name: str) -> None:
    kind = BLOCK_TYPES[name]
    levels = drawn(name)
    assert kind.signs(levels[:, :-1]) is None
    levels[2, 40], levels[2, 41] = kind.low, -kind.low
    assert (kind.signs(levels) is None) is (-kind.low > kind.high)
    levels[2, 40] = 2 * kind.low
    assert kind.signs(levels) is None


def test_the_smallest_comes_first() -> None:
    bits = [kind.bits for kind in BLOCK_TYPES.values()]
    assert bits == sorted(bits) and bits[0] == 1.6875
