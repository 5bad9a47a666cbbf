"""A small CLIP of a drawn world: contrastive training of a text and an image tower."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from bitsfusion.embedded.world import GRID_SIZE, IMAGE_SIZE, fits
from bitsfusion_lab.embedding.pixels import to_pixels
from bitsfusion_lab.embedding.state import TrainState
from bitsfusion_lab.embedding.structure import WEIGHT, StructureHead, read_captions
from bitsfusion_lab.embedding.tokenizer import TEXT_LENGTH, build_tokenizer, tokenize
from bitsfusion_lab.embedding.world import TrainedWorld

PROJECTION = 64


def build_clip(tokenizer: CLIPTokenizer, image_size: int, patch_size: int, width: int = 96) -> CLIPModel:
    """Random weights: three layers of `width` in each tower; a patch is a cell."""
    tower = dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=PROJECTION,
    )
    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id
    )
    return CLIPModel(
        CLIPConfig(
            text_config=dict(tower, vocab_size=len(tokenizer), max_position_embeddings=TEXT_LENGTH, **special),
            vision_config=dict(tower, image_size=image_size, patch_size=patch_size),
            projection_dim=PROJECTION,
        )
    )


def train_clip(
    world: TrainedWorld,
    out: Path,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 96,
    lr: float = 1e-3,
    reading_steps: int = 400,
) -> None:
    """Trains a CLIP and writes it to `out`/model; run again, it continues.

    Each picture is told from its own caption among those of the others and as many foils; a caption that happens to
    be true of another picture is no negative for it. The text tower answers questions about captions first and beside.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(world.words())
    model = build_clip(tokenizer, IMAGE_SIZE, IMAGE_SIZE // GRID_SIZE)
    head = StructureHead(model.config.text_config.hidden_size, world.structure_sizes)
    read_captions(world, tokenizer, model.text_model, head, out / "reading", steps=reading_steps, seed=seed)
    state = TrainState({"clip": model, "head": head}, out, lr, steps, 0.99)
    while state.running:
        rng = random.Random(f"{seed} {state.step}")
        noise = np.random.default_rng((seed, state.step))
        prompts = [world.training_prompt(rng) for _ in range(batch)]
        scenes = [world.sample_scene(prompt, rng) for prompt in prompts]
        captions = prompts + [world.foil(prompt, rng) for prompt in prompts]
        images = np.stack([world.draw(scene) for scene in scenes]).astype(np.float32)
        images += noise.normal(0, 1, images.shape) * noise.uniform(0, 20, (batch, 1, 1, 1))
        ids = tokenize(tokenizer, [caption.text for caption in captions])
        out_of = model(
            input_ids=ids,
            pixel_values=to_pixels(images.clip(0, 255).astype(np.uint8)),
        )
        logits = out_of.logits_per_image  # [batch, 2 batch]
        true = torch.tensor([[fits(caption, scene) for caption in captions] for scene in scenes])
        logits = logits.masked_fill(true & ~torch.eye(batch, 2 * batch, dtype=torch.bool), -torch.inf)
        target = torch.arange(batch)
        loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits[:, :batch].T, target)
        ends = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
        pooled = out_of.text_model_output.last_hidden_state[torch.arange(len(ids)), ends]
        answers = torch.tensor([world.structure(caption) for caption in captions])
        loss = loss + WEIGHT * head.loss(pooled, answers)
        state.update(loss)
        state.log(50, loss=loss.item(), top1=(logits.argmax(1) == target).float().mean().item())
    state.save()
    model.load_state_dict(state.averaged["clip"].state_dict())
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
