"""Single steps of the method on files, outside a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.errors import InputError
from bitsfusion.files import atomic_path, sha256_file, sha256_folder, write_text
from bitsfusion.metrics.generation import generate_images
from bitsfusion.models.pipeline import load_pipeline, pipeline_folder
from bitsfusion.models.published import PUBLISHED, published_recipe
from bitsfusion.models.unet import LayerInfo, LayerRole, unet_layers
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.recipe.schema import check_fits, read_recipe
from bitsfusion.schema import named
from bitsfusion.time_features.samplers import SamplerSteps
from bitsfusion.training.checkpoint import load_student


def bits_for(recipe: str, layers: dict[str, LayerInfo]) -> dict[str, int]:
    """Bits of every layer that stays: of a published recipe by name, or of a recipe file.

    Raises:
        InputError: no such recipe, or one that names unknown layers or leaves some out.
    """
    if recipe not in PUBLISHED:
        read = read_recipe(Path(recipe))
        check_fits(read, layers, recipe)
        return read.bits
    bits = dict(published_recipe(recipe))
    kept = [name for name, layer in layers.items() if layer.role is not LayerRole.TIME]
    unknown, left_out = [n for n in bits if n not in kept], [n for n in kept if n not in bits]
    if unknown:
        raise InputError(f"recipe {recipe}: got layers that the model does not have: {named(unknown)}")
    if left_out:
        raise InputError(f"recipe {recipe}: leaves out layers of the model: {named(left_out)}")
    return bits


def init_model(
    model: str, recipe: str, out: Path, method: ScaleInit, samplers: Iterable[SamplerSteps] | None
) -> PackedConfig:
    """Quantizer init, time features and packing, without training (section 4.1).

    Args:
        model: see `load_pipeline`.
        recipe: a recipe file, or the name of a published recipe.
        out: the packed pipeline folder to write.
        method: how scales are found.
        samplers: whose time features are cached; None keeps the time layers at 8 bits.
    """
    pipeline = load_pipeline(model)
    bits = bits_for(recipe, unet_layers(pipeline.unet))
    fake_quantize_model(pipeline.unet, bits, method)
    provenance = {"recipe": recipe, "scale_init": method.value}
    if recipe not in PUBLISHED:
        provenance["recipe_sha256"] = sha256_file(Path(recipe))
    source = sha256_folder(pipeline_folder(model))
    return write_pipeline(pipeline, pipeline.unet, out, samplers, source_sha256=source, provenance=provenance)


def pack_checkpoint(checkpoint: Path, model: str, out: Path, samplers: Iterable[SamplerSteps] | None) -> PackedConfig:
    """A finished stage or a checkpoint of one -> a packed pipeline folder.

    Args:
        checkpoint: a stage's folder, or a checkpoint-{step} in it.
        model: the pipeline it was trained from, which gives all but the UNet.
        out: the folder to write.
        samplers: as `init_model`.
    """
    student = load_student(checkpoint)
    pipeline = load_pipeline(model)
    provenance = {"checkpoint": checkpoint.name}
    source = sha256_folder(pipeline_folder(model))
    return write_pipeline(pipeline, student, out, samplers, source_sha256=source, provenance=provenance)


def generate_to_folder(
    folder: str,
    prompts: Sequence[str],
    out: Path,
    *,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """PNG files and metadata.jsonl (an imagefolder) of `prompts`; image i has seed `seed` + i.

    Args:
        folder: a packed folder, or any diffusers pipeline.
        out: the images' folder; files of the same names are replaced.
    """
    if not prompts:
        raise InputError("prompts: got none, wanted at least one")
    pipeline = load_pipeline(folder)
    seeds = range(seed, seed + len(prompts))
    images = generate_images(
        pipeline,
        prompts,
        seeds,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch_size=batch_size,
        progress=progress,
    )
    paths, lines = [], []
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        path = out / f"{index:04d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(image).save(temporary, format="PNG")
        settings = {"seed": seeds[index], "sampler": sampler, "steps": steps, "guidance": guidance, "model": folder}
        lines.append(json.dumps({"file_name": path.name, "text": prompt, **settings}))
        paths.append(path)
    write_text(out / "metadata.jsonl", "\n".join(lines) + "\n")
    return paths
