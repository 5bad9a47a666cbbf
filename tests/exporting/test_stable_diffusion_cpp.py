"""A GGUF file drawn with by stable-diffusion.cpp: `pip install stable-diffusion-cpp-python` builds it, in minutes.

The program reads the width of a FLUX.1 and the number of its blocks from the file, so that it loads a small one like
the published ones. CLIP's shape is fixed, T5 may be missing, and the tiny VAE is diffusers' class. All
weights are random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import bitsfusion
from bitsfusion.exporting.original import original_tensors
from bitsfusion.runs.packing import init_pipeline

SHAPE: dict[str, Any] = dict(
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=128,
    num_attention_heads=2,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    in_channels=64,
    axes_dims_rope=(16, 56, 56),
)


CLIP = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)


def drawn(denoiser: Path, clip: Path, vae: Path) -> np.ndarray:
    """[64, 64, 3] float32 of 255."""
    program = pytest.importorskip("stable_diffusion_cpp")
    model = program.StableDiffusion(
        diffusion_model_path=str(denoiser),
        clip_l_path=str(clip),
        taesd_path=str(vae),
        vae_decode_only=True,
        n_threads=1,
        verbose=False,
    )
    (image,) = model.generate_image(
        "a red circle", width=64, height=64, sample_steps=3, cfg_scale=1.0, seed=7, sample_method="euler"
    )
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def save_clip(path: Path) -> None:
    """CLIP ViT-L/14's text encoder, in float16; most of its values are zero."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in CLIPTextModel(CLIPTextConfig(**CLIP)).state_dict().items()}
    made = {}
    for name, shape in shapes.items():
        made[f"text_model.{name.removeprefix('text_model.')}"] = tensor = torch.zeros(shape, dtype=torch.float16)
        if "layer_norm" in name and name.endswith("weight"):
            tensor.fill_(1)
        elif len(shape) > 1:
            tensor[:, :64] = torch.randn(shape[0], 64) / 50
    save_file(made, path)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2])
def test_the_same_picture(bits: int, tmp_path: Path) -> None:
    """That of the same weights in float32, up to the rounding of what the program multiplies blocks with."""
    pytest.importorskip("stable_diffusion_cpp", reason="pip install stable-diffusion-cpp-python")
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(tmp_path / "dense")
    init_pipeline(str(tmp_path / "dense"), tmp_path / "packed", recipe=f"uniform:{bits}", scale_dtype="float16")
    made = bitsfusion.export(tmp_path / "packed", "gguf", tmp_path / "model.gguf")
    assert any(share.type not in ("F16", "F32") for share in made.shares) and all(x.exact for x in made.shares)
    save_file(original_tensors(tmp_path / "packed", torch.float32), tmp_path / "model.safetensors")
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "vae")
    vae = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    save_clip(tmp_path / "clip_l.safetensors")
    blocks, plain = (
        drawn(tmp_path / f"model.{kind}", tmp_path / "clip_l.safetensors", vae) for kind in ("gguf", "safetensors")
    )
    assert np.ptp(plain) > 10
    assert np.abs(blocks - plain).max() <= 2
