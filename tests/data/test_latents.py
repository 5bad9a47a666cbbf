"""Images become what each pipeline's own code makes of them."""

from __future__ import annotations

import pytest
import torch
from diffusers import Flux2KleinPipeline, QwenImageImg2ImgPipeline, UNet2DModel

from bitsfusion.data.batches import encode_images
from bitsfusion.data.encoder import Encoder
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.errors import InputError

from ..tiny.transformers import CONFIGS, build_transformer_pipeline

PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_as_flux_2_encodes_its_reference_images():
    pipeline = build_transformer_pipeline("Flux2Transformer2DModel")
    pipeline.vae.bn.running_mean.uniform_(-1, 1)
    pipeline.vae.bn.running_var.uniform_(1, 4)
    with torch.no_grad():
        wanted = Flux2KleinPipeline._encode_vae_image(pipeline, PIXELS, None)
    assert torch.allclose(encode_images(pipeline.vae, PIXELS), wanted, atol=1e-6)


def test_as_qwen_image_encodes_what_it_begins_from():
    pipeline = build_transformer_pipeline("QwenImageTransformer2DModel")
    with torch.no_grad():
        posterior = pipeline.vae.encode(PIXELS.unsqueeze(2)).latent_dist
        posterior.sample = lambda generator: posterior.mode()
        pipeline.vae.encode = lambda image: type("Output", (), {"latent_dist": posterior})()
        wanted = QwenImageImg2ImgPipeline._encode_vae_image(pipeline, PIXELS.unsqueeze(2), None)
        assert torch.allclose(encode_images(pipeline.vae, PIXELS), wanted.squeeze(2), atol=1e-6)


def test_what_sana_decodes_comes_back():
    vae = build_transformer_pipeline("SanaTransformer2DModel").vae
    with torch.no_grad():
        wanted = vae.encode(PIXELS).latent * vae.config.scaling_factor
    assert torch.equal(encode_images(vae, PIXELS), wanted)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_known_beforehand(name):
    pipeline = build_transformer_pipeline(name)
    encoder = Encoder(pipeline.vae, conditioner_of(pipeline), 16, "float32")
    made = encoder.latents(list((PIXELS * 127 + 128).to(torch.uint8)))
    assert made.shape[1:] == encoder.latents([]).shape[1:] and len(encoder.key()["vae_sha256"]) == 64
    if name != "QwenImageTransformer2DModel":
        channels = pipeline.transformer.config.in_channels
        assert made.shape[1] == (channels // 4 if name == "FluxTransformer2DModel" else channels)


def test_other_classes_are_one_line():
    with pytest.raises(InputError, match="got a UNet2DModel, wanted one of AutoencoderKL"):
        encode_images(
            UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
            PIXELS,
        )


def test_rows_of_one_pipeline_are_not_anothers():
    """Both have the same T5 and tokenizer here, but PixArt's rows have a mask."""
    keys = [
        conditioner_of(build_transformer_pipeline(name)).key()
        for name in ("PixArtTransformer2DModel", "AuraFlowTransformer2DModel")
    ]
    assert keys[0]["tokenizers"] == keys[1]["tokenizers"] and keys[0] != keys[1]
