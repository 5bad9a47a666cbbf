"""Diffusers pipeline folders in the exact shape of well-known models, filled with seeded random weights.

    python tools/shaped_pipeline.py sd15 OUT          # also sd21, sdxl; --dtype float32
    python tools/shaped_pipeline.py sd15 OUT --narrow 4 --latents 32
    python tools/shaped_pipeline.py sdxl OUT --configs-only     # no weights: for plans

Bits, speed and memory do not depend on what the weights are, and sizes hardly, so they can be measured without the
real model. Weights are Gaussian with standard deviation 1 / sqrt(fan in); norms are 1, biases 0. The tokenizer has
CLIP's size and special tokens and spells every word by letters. Images mean nothing.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bitsfusion.io.atomic import atomic_folder

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CROSS = ("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",)

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", *CROSS[0] * 2),
        "up_block_types": (*CROSS[1] * 2, "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
OPEN_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
OPEN_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
TEXT_ENCODERS = {"sd15": (CLIP_L,), "sd21": (OPEN_CLIP_H,), "sdxl": (CLIP_L, OPEN_CLIP_G)}
VAE = {
    "sample_size": 512,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_VOCABULARY = 49408


def write_pipeline(
    shape: str,
    out: Path,
    dtype: torch.dtype,
    seed: int,
    narrow: int = 1,
    latents: int | None = None,
    weights: bool = True,
) -> None:
    """Writes the folder of `shape` (a key of UNETS), whole or not at all.

    Args:
        narrow: by which the UNet's channels are divided.
        latents: the UNet's own height and width; None: the model's.
        weights: without them the folder is enough for plans (`bitsfusion plan`, `--dry-run`).
    """
    unet_config = dict(UNETS[shape])
    if narrow > 1:
        wide = unet_config.get("block_out_channels", (320, 640, 1280, 1280))
        unet_config["block_out_channels"] = tuple(channels // narrow for channels in wide)
        unet_config["norm_num_groups"] = 32 // narrow
    if latents is not None:
        unet_config["sample_size"] = latents
    second = len(TEXT_ENCODERS[shape]) > 1
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if second else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config)
        vae = AutoencoderKL(**VAE, scaling_factor=0.13025 if second else 0.18215)
    with atomic_folder(out) as folder:
        for name, model in (("unet", unet), ("vae", vae)):
            model.save_config(folder / name)
            if weights:
                values = random_weights(model, f"{seed} {shape} {name}", dtype)
                save_file(values, folder / name / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        for number, sizes in enumerate(TEXT_ENCODERS[shape]):
            suffix = "" if number == 0 else "_2"
            encoder = text_encoder(sizes, projected=number > 0)
            encoder.config.architectures = [type(encoder).__name__]  # as a saved model has it
            encoder.config.save_pretrained(folder / f"text_encoder{suffix}")
            if weights:
                values = random_weights(encoder, f"{seed} {shape} text_encoder{suffix}", dtype)
                save_file(values, folder / f"text_encoder{suffix}" / "model.safetensors", {"format": "pt"})
            letters_tokenizer().save_pretrained(folder / f"tokenizer{suffix}")
            index[f"text_encoder{suffix}"] = ["transformers", type(encoder).__name__]
            index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
        scheduler = EulerDiscreteScheduler(**NOISE) if second else PNDMScheduler(**NOISE, skip_prk_steps=True)
        scheduler.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        index |= {"force_zeros_for_empty_prompt": True} if second else {"safety_checker": [None, None]}
        index |= {} if second else {"feature_extractor": [None, None], "requires_safety_checker": False}
        (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def random_weights(model: nn.Module, seed: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A tensor for every entry of the state dict of a model on meta; each depends on `seed` and its name alone."""
    return {name: random_tensor(tensor, f"{seed} {name}", dtype) for name, tensor in model.state_dict().items()}


def random_tensor(like: Tensor, seed: str, dtype: torch.dtype) -> Tensor:
    """Gaussian of standard deviation 1 / sqrt(fan in); vectors are 1 (norms) or 0 (biases)."""
    if like.dim() < 2:
        return torch.full(like.shape, float(seed.endswith("weight")), dtype=dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randn(like.shape, generator=generator).mul_(like[0].numel() ** -0.5).to(dtype)


def text_encoder(sizes: dict[str, int], projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder on meta."""
    config = CLIPTextConfig(vocab_size=CLIP_VOCABULARY, **sizes)
    with torch.device("meta"):
        return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def letters_tokenizer() -> CLIPTokenizer:
    """As many tokens as CLIP's; letters are the only ones ever used."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += [f"<unused {number}>" for number in range(CLIP_VOCABULARY - 2 - len(tokens))]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=UNETS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--narrow", type=int, choices=(1, 2, 4), default=1, help="divides the UNet's channels")
    parser.add_argument("--latents", type=int, help="height and width of the UNet's latents")
    parser.add_argument("--configs-only", action="store_true", help="no weights: for plans")
    chosen = parser.parse_args()
    dtype, weights = getattr(torch, chosen.dtype), not chosen.configs_only
    write_pipeline(chosen.shape, chosen.out, dtype, chosen.seed, chosen.narrow, chosen.latents, weights)
    files = [path for path in chosen.out.rglob("*") if path.is_file()]
    print(f"{chosen.out}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
