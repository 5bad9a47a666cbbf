"""One forward on packed bits of a model in its published size, beside the dense one with the same weights.

    python benchmarks/forward.py [--model sd15|flux2] [--latents 32 64] [--batch 2] [--dtype bfloat16] [--rounds 5]
                                 [--threads 2] [--int8]

`sd15` is Stable Diffusion v1.5's UNet with the published 1.99-bit recipe and cached time features. `flux2` is one
double and one single block of FLUX.2 klein 4B's width, 2 bits and ends at 8, on (side^2) image tokens and 512 text
tokens. Weights are random levels. The models are in one process, take turns, and give the same numbers, which is
checked. With --int8 the packed model takes a third turn with its activations rounded; its error is that of the output
against the dense model's, norm to norm. Ratios are of medians, of the time on the clock and of processor time, which
other work on the machine disturbs less. 3 GB.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from diffusers import Flux2Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from bitsfusion import kernels
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.diffusion.samplers import Coverage
from bitsfusion.diffusion.time_features import TimeFeatureRows, place_time_features, time_feature_rows, time_layers
from bitsfusion.nn.packed import PackedConv2d, PackedLinear, int8_activations, packed_layer
from bitsfusion.nn.replace import replace_module
from bitsfusion.numerics import level_count
from bitsfusion.packing.layout import packed_size, symbols_per_byte
from bitsfusion.recipe.published import published_recipe

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
KLEIN = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
TEXT_TOKENS, BLOCK_BITS = 512, 2
STEP = 501


Pair = tuple[nn.Module, nn.Module]


def random_buffer(shape: Sequence[int], bits: int) -> Tensor:
    """A layer's buffer with every level equally likely, the weights' deviation 1 / sqrt(fan in)."""
    numel, fan_in = shape.numel(), shape[1:].numel()  # type: ignore[attr-defined]
    deviation = ((level_count(bits) ** 2 - 1) / 12) ** 0.5
    scales = torch.full((shape[0],), fan_in**-0.5 / deviation).view(torch.uint8)
    top = 256 if bits == 8 else level_count(bits) ** symbols_per_byte(bits)
    codes = torch.randint(top, (packed_size(numel, bits),), dtype=torch.uint8)
    codes[numel:] = 0  # of b = 8, whose ninth bits lie there
    return torch.cat([scales, codes])


def build(kind: type[nn.Module], config: dict[str, object], bits: dict[str, int], dtype: torch.dtype) -> Pair:
    """The dense model and the packed one with the same weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        dense, packed = (kind(**config).requires_grad_(False) for _ in range(2))
    for name, b in bits.items():
        layer = packed.get_submodule(name)
        replace_module(packed, name, packed_layer(layer, b, random_buffer(layer.weight.shape, b)))  # type: ignore[arg-type]
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
    missing = packed.load_state_dict(state, strict=False, assign=True).missing_keys
    assert all(name.endswith(".packed") for name in missing), missing
    return dense.eval(), packed.eval()


def build_sd15(dtype: torch.dtype) -> Pair:
    """The UNet of Stable Diffusion v1.5."""
    with torch.device("meta"):
        timed = set(time_layers(UNet2DConditionModel(**SD15)))
    bits = {name: b for name, b in published_recipe("sd15").items() if name not in timed}
    dense, packed = build(UNet2DConditionModel, SD15, bits, dtype)
    rows = time_feature_rows(dense, [STEP], dtype)
    for model in (dense, packed):
        place_time_features(model, TimeFeatureRows(rows, Coverage((STEP,))))
    return dense, packed


def build_flux2(dtype: torch.dtype) -> Pair:
    """Two blocks of FLUX.2 klein 4B between its ends."""
    with torch.device("meta"):
        layers = model_layers(Flux2Transformer2DModel(**KLEIN))
    bits = {name: BLOCK_BITS if layer.role is LayerRole.QUANTIZED else 8 for name, layer in layers.items()}
    return build(Flux2Transformer2DModel, KLEIN, bits, dtype)


def inputs_sd15(side: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (
        torch.randn(batch, 4, side, side, dtype=dtype),
        torch.tensor([STEP]).expand(batch),
        torch.randn(batch, 77, 768, dtype=dtype),
    )


def inputs_flux2(side: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    places = torch.arange(side)
    image = torch.cartesian_prod(torch.zeros(1).long(), places, places, torch.zeros(1).long())
    text = torch.zeros(TEXT_TOKENS, 4, dtype=torch.long)
    text[:, 3] = torch.arange(TEXT_TOKENS)
    return (
        torch.randn(batch, side * side, 128, dtype=dtype),
        torch.randn(batch, TEXT_TOKENS, 7680, dtype=dtype),
        torch.full((batch,), STEP / 1000, dtype=dtype),
        image.expand(batch, -1, -1),
        text.expand(batch, -1, -1),
    )


MODELS = {"sd15": (build_sd15, inputs_sd15), "flux2": (build_flux2, inputs_flux2)}


def timed(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, float, Tensor]:
    """Seconds on the clock, seconds of the processor, the output."""
    started, used = time.perf_counter(), time.process_time()
    output: Tensor = model(*inputs).sample
    return time.perf_counter() - started, time.process_time() - used, output


@torch.no_grad()
def measure(
    dense: nn.Module, packed: nn.Module, inputs: tuple[Tensor, ...], side: str, rounds: int, rounded: bool
) -> None:
    names = ["dense", "packed", *(["int8"] if rounded else [])]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    outputs: dict[str, Tensor] = {}
    for _ in range(rounds + 1):
        for name in names:
            if rounded:
                int8_activations(packed, name == "int8")
            *seconds, outputs[name] = timed(dense if name == "dense" else packed, inputs)
            times[name].append((seconds[0], seconds[1]))
    assert torch.equal(outputs["dense"], outputs["packed"])
    wanted = outputs["dense"].float()
    whole = [statistics.median(column) for column in zip(*times["dense"][1:], strict=True)]
    for name in names:
        clock, processor = (statistics.median(column) for column in zip(*times[name][1:], strict=True))
        error = float((outputs[name].float() - wanted).norm() / wanted.norm())
        ratios = f"{clock / whole[0]:>7.3f} {processor:>11.3f} {processor / whole[1]:>7.3f}"
        print(f"{side:>8} {name:>7} {clock:>9.3f} {ratios} {error:>9.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sd15", choices=MODELS)
    parser.add_argument("--latents", type=int, nargs="+", default=[32], help="sides, of flux2 in tokens")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--int8", action="store_true", help="also with activations rounded to int8")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    dtype = getattr(torch, chosen.dtype)
    make, inputs = MODELS[chosen.model]
    dense, packed = make(dtype)
    served = kernels.available()["cpu"].name
    print(f"{chosen.model}, batch {chosen.batch}, {chosen.dtype}, {torch.get_num_threads()} threads, {served}")
    print(f"{'latents':>8} {'model':>7} {'seconds':>9} {'ratio':>7} {'processor s':>11} {'ratio':>7} {'error':>9}")
    for side in chosen.latents:
        given = inputs(side, chosen.batch, dtype)
        measure(dense, packed, given, f"{side}x{side}", chosen.rounds, chosen.int8)


if __name__ == "__main__":
    main()
