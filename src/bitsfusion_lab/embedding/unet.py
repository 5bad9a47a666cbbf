"""The UNet with its text encoder: noise prediction on a drawn world's latents."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bitsfusion.embedded.world import GRID_SIZE
from bitsfusion_lab.embedding.state import TrainState
from bitsfusion_lab.embedding.structure import WEIGHT, StructureHead, read_captions
from bitsfusion_lab.embedding.tokenizer import TEXT_LENGTH, build_tokenizer, tokenize
from bitsfusion_lab.embedding.world import TrainedWorld

NOISE_SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)
TEXT_WIDTH = 96


def build_text_encoder(tokenizer: CLIPTokenizer, layers: int = 3) -> CLIPTextModel:
    """A CLIP text encoder of random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            projection_dim=64,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def build_unet(channels: int, grid_size: int, widths: tuple[int, ...] = (64, 128)) -> UNet2DConditionModel:
    """Random weights; attention to the text on every level, four heads."""
    return UNet2DConditionModel(
        sample_size=grid_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def train_unet(
    world: TrainedWorld,
    out: Path,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 64,
    lr: float = 1e-3,
    max_weight: float = 12.0,
    reading_steps: int = 400,
    widths: tuple[int, ...] = (64, 128),
) -> None:
    """Trains both and saves them in `out`; run again, it continues.

    The first `reading_steps` teach the text encoder alone, by the structure head; after them the head's loss stays at
    a tenth. The noise loss is weighted by min(1 + 1/SNR, max_weight), between noise and v prediction: which objects
    stand where is decided at high noise, where the plain noise loss hardly counts.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(world.words())
    tokenizer.save_pretrained(out / "tokenizer")
    unet, text_encoder = build_unet(world.channels, GRID_SIZE, widths), build_text_encoder(tokenizer)
    head = StructureHead(TEXT_WIDTH, world.structure_sizes)
    scheduler = DDPMScheduler(**NOISE_SCHEDULE)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight_at = (1 + 1 / snr).clamp(max=max_weight)
    read_captions(world, tokenizer, text_encoder, head, out / "reading", steps=reading_steps, seed=seed)
    state = TrainState({"unet": unet, "text_encoder": text_encoder, "head": head}, out, lr, steps, 0.999)
    noise_mean = structure_mean = 0.0
    while state.running:
        rng = random.Random(f"{seed} {state.step}")
        generator = torch.Generator().manual_seed(seed * 10_000_019 + state.step)
        prompts = [world.training_prompt(rng) for _ in range(batch)]
        latents = world.encode([world.sample_scene(prompt, rng) for prompt in prompts])
        kept = [rng.random() >= 0.1 for _ in prompts]  # the rest learns to draw without a text
        texts = [prompt.text if keep else "" for prompt, keep in zip(prompts, kept, strict=True)]
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(0, 1000, (len(latents),), generator=generator)
        encoded = text_encoder(tokenize(tokenizer, texts))
        predicted = unet(scheduler.add_noise(latents, noise, times), times, encoded.last_hidden_state).sample
        errors = (predicted - noise).square().mean((1, 2, 3))
        answers = torch.tensor([world.structure(prompt) for prompt in prompts])
        asked = torch.tensor(kept)
        structure = head.loss(encoded.pooler_output[asked], answers[asked])
        state.update((weight_at[times] * errors).mean() + WEIGHT * structure)
        share = 0.01 if noise_mean else 1.0
        noise_mean += share * (errors.mean().item() - noise_mean)
        structure_mean += share * (structure.item() - structure_mean)
        state.log(250, noise=noise_mean, structure=structure_mean)
    state.save()
