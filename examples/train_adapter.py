"""A LoRA trained on a packed UNet (needs peft): the bits stay, the adapter learns a part of what they lost."""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

import bitsfusion  # noqa: F401 (registers the format with diffusers)
from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import load_pipeline

out = Path(sys.argv[1])
teacher, student = load_pipeline("embedded"), load_pipeline("embedded")
layers = model_layers(student.unet).values()
bits = {
    layer.name: 8 if layer.role is LayerRole.FIRST_LAST else 2 for layer in layers if layer.role is not LayerRole.TIME
}
fake_quantize_model(student.unet, bits, ScaleInit.MINMAX)
write_pipeline(student, student.unet, out / "packed", samplers=None)  # time layers kept: training takes any step

packed = StableDiffusionPipeline.from_pretrained(out / "packed")
unet = packed.unet.requires_grad_(False)
unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_v", "to_out.0", "conv1", "conv2"]))
adapter = [parameter for parameter in unet.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(adapter, lr=1e-3)
generator = torch.Generator().manual_seed(0)


def error(batch: int = 4) -> torch.Tensor:
    """Mean squared difference from the original model's output, on noise."""
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    latents = torch.randn(batch, unet.config.in_channels, size, size, generator=generator)
    states = torch.randn(batch, 16, width, generator=generator)
    steps = torch.randint(0, 1000, (batch,), generator=generator)
    with torch.no_grad():
        wanted = teacher.unet(latents, steps, states).sample
    return (unet(latents, steps, states).sample - wanted).square().mean()


with torch.no_grad():
    before = error(16).item()
for _ in range(20):
    error().backward()
    optimizer.step()
    optimizer.zero_grad()
with torch.no_grad():
    after = error(16).item()
packed.save_lora_weights(out / "lora", convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)))
print(
    f"error {before:.4f} without the adapter, {after:.4f} with it, {sum(p.numel() for p in adapter)} trained parameters"
)
