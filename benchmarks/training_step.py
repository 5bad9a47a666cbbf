"""What fake quantization adds to a training step at the layer shapes of Stable Diffusion v1.5.

    python benchmarks/training_step.py [--batch 1] [--latents 64] [--bits 2] [--gradient-checkpointing] [--rounds 5]

One UNet of that shape in float32 with random weights, and a fake-quantized one that shares its parameters. Forward,
loss and backward of either take turns in one process; the ratio is that of the medians. The optimizer's step, equal on
both sides, is left out: with it the ratio is nearer to one. 12 GB of memory, several minutes on two cores.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bitsfusion.models.unet import unet_layers
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def build(bits: int) -> tuple[nn.Module, nn.Module]:
    """The full-precision UNet and a fake-quantized one with the same parameters."""
    torch.manual_seed(0)
    full, student = UNet2DConditionModel(**SD15), None
    with torch.device("meta"):
        student = UNet2DConditionModel(**SD15)
    student.load_state_dict(full.state_dict(keep_vars=True), assign=True)
    layers = {name: bits for name, layer in unet_layers(student).items() if layer.role.value != "time"}
    fake_quantize_model(student, {**layers, "conv_in": 8, "conv_out": 8}, ScaleInit.ALTERNATING)
    return full.eval(), student.eval()


def step(model: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], wanted: Tensor) -> tuple[float, float]:
    """Seconds of one forward and backward, and processor seconds, which other work on the machine disturbs less."""
    for parameter in model.parameters():
        parameter.grad = None
    started, used = time.perf_counter(), time.process_time()
    (model(*inputs).sample - wanted).square().mean().backward()
    return time.perf_counter() - started, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--latents", type=int, default=64, help="height and width, an eighth of the pixels")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    models = build(chosen.bits)
    if chosen.gradient_checkpointing:
        for model in models:
            model.train()  # diffusers checkpoints where gradients are on; there is no dropout in this UNet
            model.enable_gradient_checkpointing()
    shape = (chosen.batch, 4, chosen.latents, chosen.latents)
    inputs = (torch.randn(shape), torch.full((chosen.batch,), 500), torch.randn(chosen.batch, 77, 768))
    wanted = torch.randn(shape)
    taken: list[list[tuple[float, float]]] = []
    for round_number in range(chosen.rounds + 1):
        both = [step(model, inputs, wanted) for model in models]
        if round_number:  # the first is a warm-up
            taken.append(both)
    wall, processor = (
        [statistics.median(both[model][kind] for both in taken) for model in range(2)] for kind in range(2)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"SD-v1.5 shapes, float32, batch {chosen.batch}, latents {chosen.latents} x {chosen.latents}, "
        f"b = {chosen.bits}, {torch.get_num_threads()} threads, {chosen.rounds} rounds\n"
        f"full precision {wall[0]:.2f} s, fake-quantized {wall[1]:.2f} s a step: ratio {wall[1] / wall[0]:.3f}\n"
        f"processor seconds {processor[0]:.2f} and {processor[1]:.2f}: ratio {processor[1] / processor[0]:.3f}\n"
        f"each round: {', '.join(f'{both[1][0] / both[0][0]:.3f}' for both in taken)}; peak {peak:.1f} GB"
    )


if __name__ == "__main__":
    main()
