"""A UNet with shortcuts, and calibration inputs for it."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from bitsfusion.rivals.calibration import Calibration


@pytest.fixture(scope="package")
def unet():
    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="package")
def calibration():
    generator = torch.Generator().manual_seed(1)
    return Calibration(
        torch.randn(24, 4, 4, 4, generator=generator),
        torch.arange(24) * 40,
        torch.randn(24, 8, 16, generator=generator),
    )
