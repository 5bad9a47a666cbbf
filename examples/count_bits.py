"""The published 1.99-bit recipe on SD-v1.5's shapes, counted by Appendix H; no weights are needed."""

import torch
from diffusers import UNet2DConditionModel

from bitsfusion.architectures.registry import model_layers
from bitsfusion.diffusion.time_features.layers import time_outputs_width
from bitsfusion.packing.accounting import average_bits
from bitsfusion.recipe.published import published_recipe

with torch.device("meta"):
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
weights = {name: layer.numel for name, layer in model_layers(unet).items()}
average = average_bits(weights, published_recipe("sd15"), feature_values=50 * time_outputs_width(unet))
print(f"{len(weights)} layers, {sum(weights.values()) / 1e6:.1f} M weights, {average:.5f} bits on average")
