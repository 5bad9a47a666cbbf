"""Signal-to-quantization-noise ratio of the three scale initialisations on Gaussian weights, in dB."""

import torch

from bitsfusion.numerics import ScaleInit, dequantize, initial_scale, quantize

weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
print("bits  " + "  ".join(f"{method.value:>11}" for method in ScaleInit))
for bits in range(1, 7):
    ratios = []
    for method in ScaleInit:
        scale = initial_scale(weight, bits, method)
        error = weight - dequantize(quantize(weight, scale, bits), scale)
        ratios.append(10 * torch.log10(weight.square().sum() / error.square().sum()))
    print(f"{bits:>4}  " + "  ".join(f"{ratio:11.2f}" for ratio in ratios))
