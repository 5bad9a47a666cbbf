"""Diffusion transformers in the exact shape of well-known models, filled with seeded random weights.

    python tools/shaped_transformer.py flux2-klein OUT                 # 7.8 GB in bfloat16, in shards
    python tools/shaped_transformer.py qwen-image OUT --layers 1       # every stack of blocks cut to one block
    python tools/shaped_transformer.py z-image OUT --no-weights        # config.json alone, for `bitsfusion plan`
    python tools/shaped_transformer.py z-image OUT --pipeline          # configs of a pipeline, for `train --dry-run`

A folder of the transformer alone, as diffusers saves it. Weights are those of `tools/shaped_pipeline.py`: Gaussian with
standard deviation 1 / sqrt(fan in). One shard is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from shaped_pipeline import random_tensor
from torch import Tensor, nn

from bitsfusion.io.atomic import atomic_folder

SHARD = 2 << 30
WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Shape:
    """A published model's transformer.

    Fields:
        name: of its class in diffusers.
        config: where it is not the class's own default.
        depths: the config's keys that say how many blocks there are.
    """

    name: str
    config: dict[str, Any]
    depths: tuple[str, ...] = ("num_layers",)

    def build(self, layers: int | None) -> nn.Module:
        """The model on meta; `layers` cuts every stack of blocks to so many."""
        made: Any = getattr(diffusers, self.name)
        config = dict(self.config)
        if layers is not None:
            config |= dict.fromkeys(self.depths, layers)
            if "dual_attention_layers" in config:
                config["dual_attention_layers"] = tuple(n for n in config["dual_attention_layers"] if n < layers)
        with torch.device("meta"):
            model: nn.Module = made(**config)
        return model


BOTH = ("num_layers", "num_single_layers")
SHAPES = {
    "flux1-dev": Shape("FluxTransformer2DModel", {"guidance_embeds": True}, BOTH),
    "flux2-klein": Shape(
        "Flux2Transformer2DModel",
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        BOTH,
    ),
    "sd35-medium": Shape(
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "pixart-sigma": Shape(
        "PixArtTransformer2DModel",
        {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
    ),
    "sana": Shape("SanaTransformer2DModel", {}),
    "z-image": Shape("ZImageTransformer2DModel", {}, ("n_layers", "n_refiner_layers")),
    "qwen-image": Shape("QwenImageTransformer2DModel", {}),
    "auraflow": Shape("AuraFlowTransformer2DModel", {}, ("num_mmdit_layers", "num_single_dit_layers")),
    "ovis-image": Shape("OvisImageTransformer2DModel", {}, BOTH),
    "longcat-image": Shape("LongCatImageTransformer2DModel", {}, BOTH),
}


PIPELINES = {
    "flux1-dev": ("FluxPipeline", "AutoencoderKL"),
    "flux2-klein": ("Flux2KleinPipeline", "AutoencoderKLFlux2"),
    "sd35-medium": ("StableDiffusion3Pipeline", "AutoencoderKL"),
    "pixart-sigma": ("PixArtSigmaPipeline", "AutoencoderKL"),
    "sana": ("SanaPipeline", "AutoencoderDC"),
    "z-image": ("ZImagePipeline", "AutoencoderKL"),
    "qwen-image": ("QwenImagePipeline", "AutoencoderKLQwenImage"),
    "auraflow": ("AuraFlowPipeline", "AutoencoderKL"),
    "ovis-image": ("OvisImagePipeline", "AutoencoderKL"),
    "longcat-image": ("LongCatImagePipeline", "AutoencoderKL"),
}
"""The classes of a shape's pipeline and VAE."""
KL_BLOCKS = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
"""What AutoencoderKL has no default for: pictures of eight times the latents' size."""


def write_pipeline_configs(name: str, out: Path, layers: int | None = None) -> None:
    """A pipeline's folder without weights, text encoders and tokenizers: what a plan reads."""
    pipeline, vae = PIPELINES[name]
    with atomic_folder(out) as folder:
        model: Any = SHAPES[name].build(layers)
        model.save_config(folder / "transformer")
        with torch.device("meta"):
            made = getattr(diffusers, vae)(**(KL_BLOCKS if vae == "AutoencoderKL" else {}))
        made.save_config(folder / "vae")
        parts = {"transformer": ["diffusers", SHAPES[name].name], "vae": ["diffusers", vae]}
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **parts}, indent=1) + "\n")


def write_transformer(
    shape: Shape, out: Path, dtype: torch.dtype, seed: str, layers: int | None = None, weights: bool = True
) -> None:
    """Writes the folder, whole or not at all; of a model above `SHARD` bytes in shards with their index."""
    model: Any = shape.build(layers)
    with atomic_folder(out) as folder:
        model.save_config(folder)
        if weights:
            write_shards(folder, WEIGHTS, model, dtype, seed)


def write_shards(folder: Path, stem: str, model: nn.Module, dtype: torch.dtype, seed: str) -> None:
    """The weights of a model on meta, tensor by tensor; persistent buffers keep what they hold off meta."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in model.state_dict().items():
        bytes_of = tensor.numel() * dtype.itemsize
        if size + bytes_of > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += bytes_of
    if len(shards) == 1:
        save_file(made(shards[0], dtype, seed), folder / f"{stem}.safetensors", {"format": "pt"})
        return
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        save_file(made(shard, dtype, seed), folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = dtype.itemsize * sum(tensor.numel() for tensor in model.state_dict().values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def made(tensors: dict[str, Tensor], dtype: torch.dtype, seed: str) -> dict[str, Tensor]:
    """A tensor of random weights for each one on meta."""
    return {name: random_tensor(tensor, f"{seed} {name}", dtype) for name, tensor in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="blocks of every stack, instead of all")
    parser.add_argument("--no-weights", action="store_true", help="config.json alone")
    parser.add_argument("--pipeline", action="store_true", help="the configs of transformer and VAE as a pipeline")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    seed = f"{chosen.seed} {chosen.shape} transformer"
    if chosen.pipeline:
        write_pipeline_configs(chosen.shape, chosen.out, chosen.layers)
        return
    write_transformer(SHAPES[chosen.shape], chosen.out, dtype, seed, chosen.layers, not chosen.no_weights)
    files = [path for path in chosen.out.rglob("*") if path.is_file()]
    print(f"{chosen.out}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
