"""A rival's file: its bytes are what the codes take, and it alone gives the model back."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from bitsfusion_lab.rivals.stored import (
    PaletteWeight,
    UniformWeight,
    pack_codes,
    packed_bytes,
    read_model,
    unpack_codes,
    write_model,
)

CONFIG = {
    "sample_size": 4,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 70), st.randoms(use_true_random=False))
def test_codes_come_back_and_take_b_bits_each(bits, count, rng):
    codes = torch.tensor([rng.randrange(2**bits) for _ in range(count)], dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.nbytes == packed_bytes(count, bits) == math.ceil(count * bits / 8)
    as_number = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    assert int.from_bytes(packed.tobytes(), "little") == as_number
    assert torch.equal(unpack_codes(packed, bits, count), codes)


def test_a_weight_in_two_groups():
    codes = torch.tensor([[0, 1, 3], [2, 2, 0]], dtype=torch.uint8)
    scale = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    zero = torch.tensor([[1, 0], [0, 3]], dtype=torch.uint8)
    dense = UniformWeight(2, codes, scale, zero, (2, 1)).dense()
    assert dense.tolist() == [[-1.0, 0.0, 30.0], [4.0, 4.0, -60.0]]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(CONFIG).eval()


def test_the_file_alone_gives_the_model(unet, tmp_path):
    torch.manual_seed(1)
    shape = unet.conv_in.weight.shape
    uniform = UniformWeight(
        3,
        torch.randint(0, 8, shape, dtype=torch.uint8),
        torch.rand(2, shape[0]),
        torch.randint(0, 8, (2, shape[0]), dtype=torch.uint8),
        (1, 1),
    )
    palette = PaletteWeight(
        2, torch.randint(0, 4, unet.conv_out.weight.shape, dtype=torch.uint8), torch.randn(4).sort().values.half()
    )
    path = tmp_path / "model.safetensors"
    size = write_model(path, unet, {"conv_in": uniform, "conv_out": palette})
    assert size == path.stat().st_size
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        assert not {"conv_in.weight", "conv_out.weight"} & set(names)
        assert file.get_tensor("conv_in.codes").numel() <= packed_bytes(math.prod(shape), 3)
    read = read_model(path, CONFIG)
    assert torch.equal(read.conv_in.weight, uniform.dense())
    assert torch.equal(read.conv_out.weight, palette.dense())
    others = {
        name: value for name, value in unet.state_dict().items() if name.split(".")[0] not in ("conv_in", "conv_out")
    }
    assert others
    assert all(torch.equal(read.state_dict()[name], value) for name, value in others.items())
    assert torch.equal(read.conv_in.bias, unet.conv_in.bias)
