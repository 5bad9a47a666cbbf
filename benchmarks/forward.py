"""One forward of a Stable Diffusion v1.5-sized UNet on packed bits, beside the dense one with the same weights.

    python benchmarks/forward.py [--latents 32 64] [--batch 2] [--dtype bfloat16] [--rounds 5] [--threads 2]

Bits are those of the published 1.99-bit recipe, weights are random levels; time features are cached in both. The models
are in one process, take turns, and give the same numbers, which is checked; ratios are of the medians. 3 GB of memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bitsfusion import kernels
from bitsfusion.models.published import published_recipe
from bitsfusion.nn.packed import PackedConv2d, PackedLinear, packed_layer
from bitsfusion.nn.replace import replace_module
from bitsfusion.numerics import level_count
from bitsfusion.packing.radix import packed_size, symbols_per_byte
from bitsfusion.time_features import Coverage, place_time_features, time_feature_rows, time_layers

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
STEP = 501


def random_buffer(shape: Sequence[int], bits: int) -> Tensor:
    """A layer's buffer with every level equally likely, the weights' deviation 1 / sqrt(fan in)."""
    numel, fan_in = shape.numel(), shape[1:].numel()  # type: ignore[attr-defined]
    deviation = ((level_count(bits) ** 2 - 1) / 12) ** 0.5
    scales = torch.full((shape[0],), fan_in**-0.5 / deviation).view(torch.uint8)
    top = 256 if bits == 8 else level_count(bits) ** symbols_per_byte(bits)
    codes = torch.randint(top, (packed_size(numel, bits),), dtype=torch.uint8)
    codes[numel:] = 0  # of b = 8, whose ninth bits lie there
    return torch.cat([scales, codes])


def build(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The dense UNet and the packed one with the same weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        dense, packed = (UNet2DConditionModel(**SD15).requires_grad_(False) for _ in range(2))
    timed = set(time_layers(dense))
    for name, bits in published_recipe("sd15").items():
        if name not in timed:
            layer = packed.get_submodule(name)
            replace_module(packed, name, packed_layer(layer, bits, random_buffer(layer.weight.shape, bits)))  # type: ignore[arg-type]
    state = {}
    for name, tensor in dense.state_dict().items():
        layer = packed.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, (PackedLinear, PackedConv2d)) and name.endswith("weight"):
            state[name] = layer.unpack_weight(dtype)
        elif tensor.dim() > 1:
            state[name] = torch.randn(tensor.shape).mul_(tensor[0].numel() ** -0.5).to(dtype)
        else:
            state[name] = torch.full(tensor.shape, float(name.endswith("weight")), dtype=dtype)
    dense.load_state_dict(state, assign=True)
    rows = time_feature_rows(dense, [STEP], dtype)
    for model in (dense, packed):
        place_time_features(model, rows, Coverage((STEP,)))
    missing = packed.load_state_dict(state, strict=False, assign=True).missing_keys
    assert all(name.endswith(".packed") or name == "time_proj.rows" for name in missing), missing
    return dense.eval(), packed.eval()


def seconds(model: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    output: Tensor = model(*inputs).sample
    return time.perf_counter() - started, output


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--latents", type=int, nargs="+", default=[32], help="height and width, an eighth of the pixels"
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    dtype = getattr(torch, chosen.dtype)
    dense, packed = build(dtype)
    served = kernels.available()["cpu"]
    print(f"UNet of SD-v1.5's size, batch {chosen.batch}, {chosen.dtype}, {torch.get_num_threads()} threads, {served}")
    print(f"{'latents':>8} {'dense s':>9} {'packed s':>9} {'ratio':>7}")
    for side in chosen.latents:
        inputs = (
            torch.randn(chosen.batch, 4, side, side, dtype=dtype),
            torch.tensor([STEP]).expand(chosen.batch),
            torch.randn(chosen.batch, 77, 768, dtype=dtype),
        )
        assert torch.equal(seconds(dense, inputs)[1], seconds(packed, inputs)[1])
        times = [(seconds(dense, inputs)[0], seconds(packed, inputs)[0]) for _ in range(chosen.rounds)]
        whole, ours = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{side:>5}x{side:<2} {whole:>9.3f} {ours:>9.3f} {ours / whole:>7.3f}", flush=True)


if __name__ == "__main__":
    main()
