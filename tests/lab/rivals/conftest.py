"""A UNet with shortcuts, and calibration inputs for it."""

import pytest
import torch

from bitsfusion_lab.rivals.calibration import Calibration

from ..tiny.unet import build_unet


@pytest.fixture(scope="package")
def unet():
    return build_unet().requires_grad_(False)


@pytest.fixture(scope="package")
def calibration():
    generator = torch.Generator().manual_seed(1)
    return Calibration(
        torch.randn(24, 4, 4, 4, generator=generator),
        torch.arange(24) * 40,
        torch.randn(24, 8, 16, generator=generator),
    )
