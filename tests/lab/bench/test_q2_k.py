"""Q2_K blocks: written by hand in one case, read by the gguf library where it is installed."""

import pytest
import torch

from bitsfusion_lab.bench.methods.q2_k import BLOCK_BYTES, encode_q2_k


def decode(blocks):
    """By the formula of the format, weight by weight."""
    weights = []
    for block in blocks.reshape(-1, BLOCK_BYTES):
        d, dmin = (float(block[at : at + 2].view(torch.float16)) for at in (80, 82))
        for index in range(256):
            scale = int(block[index // 16])
            half, rest = divmod(index, 128)
            symbol = (int(block[16 + 32 * half + rest % 32]) >> (2 * (rest // 32))) & 3
            weights.append(d * (scale & 15) * symbol - dmin * (scale >> 4))
    return torch.tensor(weights)


def test_weights_on_the_levels_come_back():
    """Sixteen groups of 0.5 q - 1, q = 0 .. 3: every scale is 15 d and every offset 15 dmin, exactly."""
    weight = (torch.arange(512) % 4 * 0.5 - 1).reshape(2, 256)
    blocks = encode_q2_k(weight)
    assert blocks.shape == (2, BLOCK_BYTES)
    assert blocks[0, :16].tolist() == [255] * 16
    torch.testing.assert_close(decode(blocks).reshape(2, 256), weight, rtol=0, atol=2e-3)


def test_gaussian_weights_have_the_error_of_two_bits():
    """Four levels at best leave 9.3 dB of a Gaussian (Lloyd-Max); a range for every 16 weights gains some more."""
    weight = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    back = decode(encode_q2_k(weight)).reshape(4, 512)
    assert 9.3 < 10 * torch.log10(weight.square().sum() / (weight - back).square().sum()) < 14


def test_zeros_stay_zeros():
    assert bool((decode(encode_q2_k(torch.zeros(1, 256))) == 0).all())


def test_the_library_reads_the_same():
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(3, 768, generator=torch.Generator().manual_seed(1))
    blocks = encode_q2_k(weight)
    read = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.Q2_K)
    torch.testing.assert_close(torch.from_numpy(read).flatten(), decode(blocks), rtol=1e-5, atol=1e-6)
