"""Writes the golden folders of the reader's tests: packed files of one format version, and what they decode to.

    python tools/make_golden.py tests/artifact/golden/v2

Version 1's were made by an earlier form of this file.

They are made once for each format version and never again: a later writer may choose other bytes, a later reader must
still read these. `expected.json` holds, for each folder and each weight, the SHA-256 of its float32 bytes as computed
from the levels and scales before packing.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.parts import Features
from bitsfusion.artifact.writer import write_model
from bitsfusion.diffusion.samplers import Coverage, SamplerSteps
from bitsfusion.diffusion.time_features import TimeBasis, time_feature_rows
from bitsfusion.diffusion.time_features.spline import Knots
from bitsfusion.io.texts import write_json
from bitsfusion.nn.replace import fake_quantize_model, fake_quantized_layers
from bitsfusion.numerics import ScaleInit

COVERAGE = Coverage((999, 689.75, 402.8333435058594, 0, -1.5), (SamplerSteps("heun", 4), SamplerSteps("own", 2)))
KNOTS = Knots(-2, 64, 16)


def made_up_basis(channels: int, rank: int = 3) -> TimeBasis:
    """Any numbers will do: what is tested is that readers come to the same features."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((channels,), (rank, channels), (KNOTS.points, rank))
    return TimeBasis(*(torch.randn(shape, generator=generator).half() for shape in shapes), KNOTS, error=0.75)


def tiny_unet() -> UNet2DConditionModel:
    """Every kind of layer, in about 20,000 weights."""
    torch.manual_seed(20240)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=10,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def quantized(unet: UNet2DConditionModel, time_layers: bool) -> UNet2DConditionModel:
    """All of b = 1..8 in turn, first, last and time layers at 8; odd scales among them: zero, negative, tiny, huge."""
    layers = model_layers(unet).values()
    kept = [layer.name for layer in layers if layer.role is LayerRole.QUANTIZED]
    bits = {name: 1 + index % 8 for index, name in enumerate(kept)} | {"conv_in": 8, "conv_out": 8}
    if time_layers:
        bits |= {layer.name: 8 for layer in layers if layer.role is LayerRole.TIME}
    fake_quantize_model(unet, bits, ScaleInit.EXACT)
    odd = fake_quantized_layers(unet)["mid_block.resnets.0.conv1"]
    with torch.no_grad():
        odd.scale[:4] = torch.tensor([0.0, -0.01, 1e-30, 1e30])
    return unet


def sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def expected(unet: nn.Module, features: Features) -> dict[str, str]:
    """Name -> hash of every weight, bias and row that a reader must come to."""
    layers = fake_quantized_layers(unet)
    found = {f"{name}.weight": sha256(layer.quantized_weight()) for name, layer in layers.items()}
    removed = {layer.name for layer in model_layers(unet).values()} - layers.keys()
    for name, tensor in unet.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner not in removed and (owner not in layers or leaf == "bias"):
            found[name] = sha256(tensor)
    if isinstance(features, Coverage):
        found["time_proj.rows"] = sha256(time_feature_rows(unet, features.steps))
    elif features is not None:
        found |= {f"time_proj.{name}": sha256(tensor) for name, tensor in features.tensors().items()}
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder, such as tests/artifact/golden/v2")
    target: Path = parser.parse_args().folder
    if target.exists():
        parser.error(f"{target}: is there already, and golden folders are made once")
    hashes = {}
    channels = time_feature_rows(tiny_unet(), (1,)).shape[1]
    for name, features in (("basis", made_up_basis(channels)), ("fractions", COVERAGE)):
        unet = quantized(tiny_unet(), time_layers=False)
        write_model(unet, target / name, features, provenance={"made_by": "tools/make_golden.py"})
        hashes[name] = expected(unet, features)
    write_json(target / "expected.json", hashes)


if __name__ == "__main__":
    main()
