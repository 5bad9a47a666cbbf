from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bitsfusion.architectures.registry import UNET, model_layers
from bitsfusion.numerics import ScaleInit, initial_scale, quantize
from bitsfusion.sensitivity import entropy
from bitsfusion.sensitivity.entropy import level_entropies

from ..tiny.pipeline import build_one_block_pipeline


def test_of_normal_weights():
    """The published figures for Gaussian weights with the best scale (paper.md, section 8)."""
    model = nn.Sequential(nn.Linear(4000, 16, bias=False))
    torch.manual_seed(0)
    with torch.no_grad():
        model[0].weight.normal_()
    got = level_entropies(model, architecture=UNET)["0"]
    assert got[:4] == pytest.approx([1.538, 2.187, 2.893, 3.674], abs=0.02)
    assert list(got) == sorted(got) and 7 < got[7] < 8.006


def test_counts_every_layer_of_a_unet():
    unet = build_one_block_pipeline().unet
    seen = []
    got = level_entropies(unet, ScaleInit.MINMAX, lambda done, total: seen.append((done, total)))
    assert set(got) == set(model_layers(unet)) and seen[-1] == (len(got), len(got))
    for name in ("conv_in", "down_blocks.0.resnets.0.conv1"):
        weight = unet.get_parameter(f"{name}.weight").detach()
        for bits in (1, 5, 8):
            levels = quantize(weight, initial_scale(weight, bits, ScaleInit.MINMAX), bits).numpy().ravel()
            share = np.unique(levels, return_counts=True)[1] / levels.size
            assert got[name][bits - 1] == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-6)


def test_a_sample_of_channels_is_near_the_whole(monkeypatch):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(512, 256))
    whole = level_entropies(model, architecture=UNET)["0"]
    monkeypatch.setattr(entropy, "SAMPLED_WEIGHTS", 1 << 14)
    part = level_entropies(model, architecture=UNET)["0"]
    assert part[:3] == whole[:3] and part[3:] != whole[3:]
    assert part == pytest.approx(whole, abs=0.02)
