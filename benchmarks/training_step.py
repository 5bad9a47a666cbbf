"""What fake quantization adds to a training step at the layer shapes of Stable Diffusion v1.5.

    python benchmarks/training_step.py [--batch 1] [--latents 64] [--bits 2] [--rounds 7] [--threads 1]

Every distinct block of the UNet (ResBlocks, transformers, resampling, first and last convolution) in float32 with
random weights and inputs: forward and backward, in full precision and fake-quantized with the same parameters, take
turns in one process. The medians, times how often the block occurs, add up to a step. The optimizer, equal on both
sides, is left out: with it the ratio is nearer to one. Processor time is given too: other work on the machine disturbs
it less.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import Counter
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
BLOCKS = (ResnetBlock2D, Transformer2DModel, Downsample2D, Upsample2D)


def blocks(batch: int, latents: int) -> tuple[nn.Module, dict[Any, list[str]]]:
    """The UNet on meta, and the names of its blocks by what decides their cost: parameters and inputs."""
    groups: dict[Any, list[str]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = [*arguments, keywords.get("encoder_hidden_states")]
            inputs = tuple(tuple(value.shape) for value in given if isinstance(value, Tensor))
            weights = tuple(tuple(parameter.shape) for parameter in module.parameters())
            groups.setdefault((type(module).__name__, inputs, weights), []).append(name)

        return hook

    with FakeTensorMode():
        unet = UNet2DConditionModel(**SD15)
        for name, module in unet.named_modules():
            if isinstance(module, BLOCKS) or name in ("conv_in", "conv_out"):
                module.register_forward_pre_hook(note(name), with_kwargs=True)
        noisy = torch.empty(batch, 4, latents, latents)
        unet(noisy, torch.zeros(batch), torch.empty(batch, 77, 768))
    with torch.device("meta"):
        return UNet2DConditionModel(**SD15), groups


def pair(meta: nn.Module, name: str, bits: int) -> tuple[nn.Module, nn.Module]:
    """A block in full precision, and fake-quantized with the same parameters."""
    full = copy.deepcopy(meta.get_submodule(name)).to_empty(device="cpu")
    for parameter in full.parameters():
        nn.init.normal_(parameter, std=0.02)
    holder = nn.ModuleDict({"block": copy.deepcopy(meta.get_submodule(name))})
    holder.block.load_state_dict(full.state_dict(keep_vars=True), assign=True)
    time_layers = {name for name, layer in model_layers(meta).items() if layer.role is LayerRole.TIME}
    layers = {
        f"block{'.' if inner else ''}{inner}": 8 if name in ("conv_in", "conv_out") else bits
        for inner, module in full.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and f"{name}.{inner}" not in time_layers
    }
    fake_quantize_model(holder, layers, ScaleInit.MINMAX)
    return full, holder.block


def step(block: nn.Module, inputs: list[Tensor], wanted: Tensor | None) -> tuple[Tensor, float, float]:
    """The output of one forward and backward, its seconds, and its processor seconds."""
    for tensor in (*block.parameters(), *inputs):
        tensor.grad = None
    options = {"encoder_hidden_states": inputs[1]} if isinstance(block, Transformer2DModel) else {}
    arguments = inputs[:1] if options else inputs
    began, used = time.perf_counter(), time.process_time()
    output = block(*arguments, **options)
    output = output if isinstance(output, Tensor) else output[0]
    output.backward(output if wanted is None else wanted)
    return output.detach(), time.perf_counter() - began, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--latents", type=int, default=64, help="height and width, an eighth of the pixels")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    meta, groups = blocks(chosen.batch, chosen.latents)
    wall, processor, weights = [0.0, 0.0], [0.0, 0.0], 0
    by_kind: Counter[str] = Counter()
    for (kind, shapes, _), names in groups.items():
        models = pair(meta, names[0], chosen.bits)
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        wanted, _, _ = step(models[0], inputs, None)
        step(models[1], inputs, wanted)
        taken = [[step(model, inputs, wanted)[1:] for model in models] for _ in range(chosen.rounds)]
        for index in range(2):
            wall[index] += len(names) * statistics.median(both[index][0] for both in taken)
            processor[index] += len(names) * statistics.median(both[index][1] for both in taken)
        weights += len(names) * sum(parameter.numel() for parameter in models[0].parameters())
        by_kind[kind] += len(names)
    print(
        f"SD-v1.5 shapes, float32, batch {chosen.batch}, latents {chosen.latents} x {chosen.latents}, "
        f"b = {chosen.bits}, {chosen.threads} threads, medians of {chosen.rounds}\n"
        f"{', '.join(f'{count} {kind}' for kind, count in by_kind.items())}: {weights / 1e6:.0f} M parameters\n"
        f"full precision {wall[0]:.2f} s, fake-quantized {wall[1]:.2f} s a step: ratio {wall[1] / wall[0]:.3f}\n"
        f"processor seconds {processor[0]:.2f} and {processor[1]:.2f}: ratio {processor[1] / processor[0]:.3f}"
    )


if __name__ == "__main__":
    main()
