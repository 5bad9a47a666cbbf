"""A Stable Diffusion pipeline and a CLIP scorer of random weights, small enough to run in a test."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bitsfusion.data.batches import Batch, tokenize
from bitsfusion.metrics.clip_score import ClipScorer

TOKENS = 8
SPECIAL = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
PROMPTS = ("red circle", "blue square", "circle", "red square", "blue circle")


def build_tokenizer() -> CLIPTokenizer:
    """Every word of the prompts is one token: its letters are merged from the left."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in ("red", "blue", "circle", "square"):
        *parts, last = [*word[:-1], f"{word[-1]}</w>"]
        merged = parts[0]
        for part in [*parts[1:], last]:
            merges.append((merged, part))
            merged += part
            tokens.append(merged)
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def build_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """16x16 images from 4x4 latents; the UNet has 2 blocks, attention, a conv shortcut and time layers."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        sample_size=16,
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    with torch.no_grad():  # random decoders are nearly flat grey: stretch what the latents make
        vae.decoder.conv_out.weight.mul_(8)
    tokenizer = build_tokenizer()
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **SPECIAL, **shape)
    schedule = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_scorer(batch_size: int = 64) -> ClipScorer:
    torch.manual_seed(7)
    tokenizer = build_tokenizer()
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = dict(tower, vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **SPECIAL)
    config = CLIPConfig(text_config=text, vision_config=dict(tower, image_size=16, patch_size=8), projection_dim=8)
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(size=size, crop_size=size, do_resize=True)
    return ClipScorer(CLIPModel(config), tokenizer, processor, batch_size)


class RandomData:
    """Latents and captions drawn by step alone."""

    def __init__(self, fingerprint: str = "random") -> None:
        self.fingerprint = fingerprint
        self.tokenizer = build_tokenizer()

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        rng = np.random.default_rng([rank, step])
        latents = torch.from_numpy(rng.standard_normal((size, 4, 4, 4), dtype=np.float32))
        captions = [str(rng.choice(PROMPTS)) for _ in range(size)]
        return Batch(latents, tokenize(self.tokenizer, captions), tuple(captions))
