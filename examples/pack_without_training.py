"""Measure, assign, quantize and pack, without training; then draw with the packed folder."""

import sys
from pathlib import Path

from diffusers import StableDiffusionPipeline

import bitsfusion  # noqa: F401 (registers the format with diffusers)
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.data.drawn import DrawnData
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.recipe import assign
from bitsfusion.sensitivity.measure import analyze
from bitsfusion.sensitivity.settings import NoiseErrorSettings

out = Path(sys.argv[1])
pipeline = load_pipeline("embedded")
data = DrawnData(pipeline.vae, conditioner_of(pipeline), pool=256)
table = analyze(
    pipeline, NoiseErrorSettings(samples=16), out / "sensitivity.json", data, model="embedded", source_sha256=None
)
recipe = assign(table, target_bits=1.99)
fake_quantize_model(pipeline.unet, recipe.bits)
write_pipeline(pipeline, pipeline.unet, out / "packed")

packed = StableDiffusionPipeline.from_pretrained(out / "packed")
packed("a red circle and a blue square").images[0].save(out / "image.png")
print(f"{recipe.average_bits:.3f} bits on average, image in {out / 'image.png'}")
