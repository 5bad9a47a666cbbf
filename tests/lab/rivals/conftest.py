"""A UNet with shortcuts, and calibration inputs for it."""

import pytest
import torch

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.diffusion.samples import NoisySamples

from ...tiny.unet import build_unet


@pytest.fixture(scope="package")
def unet():
    return build_unet().requires_grad_(False)


@pytest.fixture(scope="package")
def calibration():
    generator = torch.Generator().manual_seed(1)
    return NoisySamples(
        torch.randn(24, 4, 4, 4, generator=generator),
        torch.arange(24) * 40,
        Conditioning({"encoder_hidden_states": torch.randn(24, 8, 16, generator=generator)}),
    )
