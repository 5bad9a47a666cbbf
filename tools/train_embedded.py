"""Trains the embedded model from nothing: tokenizer, CLIP, UNet with its text encoder, VAE; then exports it.

Each stage runs alone and resumes; together, in this order:

    python tools/train_embedded.py clip --out work/clip --seed 0      # the text encoder's start
    python tools/train_embedded.py clip --out work/scorer --seed 1    # the scorer
    python tools/train_embedded.py vae  --out work/vae
    python tools/train_embedded.py unet --out work/unet --clip work/clip --steps 11000
    python tools/train_embedded.py unet --out work/unet2 --clip work/clip --start work/unet --relations \\
        --steps 4000 --lr 6e-4
    python tools/train_embedded.py export --work work --start work/unet2 --out src/bitsfusion/embedded
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from bitsfusion.data.world.captions import TASKS, Prompt, all_prompts, fits, sample_prompt, sample_scene
from bitsfusion.data.world.scene import (
    BACKGROUND,
    CELL_SIZE,
    COLORS,
    GRID_SIZE,
    IMAGE_SIZE,
    SHAPES,
    Object,
    draw,
    shape_mask,
)

TEXT_LENGTH = 16
LATENT_CHANNELS = 12
# Counting and relations need the slots to agree on a plan and take longest to learn.
TASK_WEIGHTS = (0.5, 1.0, 1.5, 0.7, 2.0, 1.3)


def build_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer trained until every word of the world's captions is one token."""
    words = sorted({word for tag in TASKS for prompt in all_prompts(tag, "train") for word in prompt.text.split()})
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=1, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(words, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=TEXT_LENGTH
    )
    for word in words:
        assert len(tokenizer(word).input_ids) == 3, word
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(
        texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


class LatentCode:
    """The linear code that the VAE learns: each cell's drawing on a whitened 12-dimensional basis.

    Shapes times colours span exactly 4 x 3 dimensions. Whitened over the sprites, every direction of shape
    and colour has the same signal, and an object (not the mostly empty image) has RMS 1.
    """

    def __init__(self) -> None:
        masks = np.stack([shape_mask(shape).ravel() for shape in SHAPES], axis=1)
        triangular = np.linalg.qr(masks, mode="r")
        tints = (np.asarray(list(COLORS.values()), dtype=np.float64) - BACKGROUND) / 127.5
        sprites = np.stack([np.outer(triangular[:, s], tint).ravel() for s in range(len(SHAPES)) for tint in tints])
        values, vectors = np.linalg.eigh(sprites.T @ sprites / len(sprites))
        whiten = vectors / np.sqrt(values) @ vectors.T
        codes = (sprites @ whiten).astype(np.float32)
        names = [(shape, color) for shape in SHAPES for color in COLORS]
        self.codes = {name: torch.from_numpy(code) for name, code in zip(names, codes, strict=True)}

    def encode(self, scenes: list[tuple[Object, ...]]) -> torch.Tensor:
        """[n, 12, 4, 4] float32 latents of scenes."""
        from bitsfusion.data.world.scene import SLOTS

        latents = torch.zeros(len(scenes), LATENT_CHANNELS, GRID_SIZE, GRID_SIZE)
        for index, scene in enumerate(scenes):
            for item in scene:
                row, column = SLOTS[item.slot]
                latents[index, :, row, column] = self.codes[item.shape, item.color]
        return latents


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


class TrainState:
    """Model weights, averaged weights, optimizer and step, saved whole and resumed by the same command."""

    def __init__(self, modules: dict[str, torch.nn.Module], out: Path, lr: float, steps: int, ema: float) -> None:
        self.modules, self.out, self.steps, self.ema_decay, self.step, self.lr = modules, out, steps, ema, 0, lr
        self.parameters = [p for m in modules.values() for p in m.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.averaged = copy.deepcopy(modules)
        out.mkdir(parents=True, exist_ok=True)
        if (out / "state.pt").exists():
            state = torch.load(out / "state.pt", weights_only=True)
            self.step = state["step"]
            self.optimizer.load_state_dict(state["optimizer"])
            for name in modules:
                modules[name].load_state_dict(state["modules"][name])
                self.averaged[name].load_state_dict(state["averaged"][name])

    def update(self, loss: torch.Tensor) -> None:
        warmup = min(1.0, (self.step + 1) / 200)
        rate = self.lr * warmup * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                averages, values = list(self.averaged[name].parameters()), list(module.parameters())
                torch._foreach_lerp_(averages, values, 1 - decay)

    def save(self) -> None:
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "averaged": {name: module.state_dict() for name, module in self.averaged.items()},
        }
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")

    def log(self, every: int, started: float, **values: float) -> None:
        if self.step % every == 0:
            fields = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"step {self.step}/{self.steps} {fields} {time.time() - started:.0f} s", flush=True)
            self.save()


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = dict(hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4, projection_dim=64)
    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id
    )
    config = CLIPConfig(
        text_config=dict(tower, vocab_size=len(tokenizer), max_position_embeddings=TEXT_LENGTH, **special),
        vision_config=dict(tower, image_size=IMAGE_SIZE, patch_size=CELL_SIZE),
        projection_dim=64,
    )
    return CLIPModel(config)


def _foil(prompt: Prompt, rng: random.Random) -> Prompt:
    """Another caption about the same shapes and colours where there is one: what contrast must tell apart."""

    def key(p: Prompt) -> tuple[list[str], list[str]]:
        return sorted(n.shape for n in p.include), sorted(n.color or "" for n in p.include)

    others = all_prompts(prompt.tag, "train")
    for _ in range(60):
        other = rng.choice(others)
        if other.include != prompt.include and key(other) == key(prompt):
            return other
    return rng.choice(others)


def train_clip(args: argparse.Namespace) -> None:
    """Contrastive training; a caption that happens to be true of another picture is no negative for it."""
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_clip(tokenizer)
    state = TrainState({"clip": model}, args.out, args.lr or 1e-3, args.steps or 1500, 0.99)
    started = time.time()
    while state.step < state.steps:
        rng = random.Random(f"{args.seed} {state.step}")
        noise = np.random.default_rng((args.seed, state.step))
        prompts = [sample_prompt(rng, weights=TASK_WEIGHTS) for _ in range(96)]
        scenes = [sample_scene(prompt, rng) for prompt in prompts]
        captions = prompts + [_foil(prompt, rng) for prompt in prompts]
        images = np.stack([draw(scene) for scene in scenes]).astype(np.float32)
        images += noise.normal(0, 1, images.shape) * noise.uniform(0, 20, (len(images), 1, 1, 1))
        pixels = to_pixels(images.clip(0, 255).astype(np.uint8))
        out = model(input_ids=tokenize(tokenizer, [c.text for c in captions]), pixel_values=pixels)
        logits = out.logits_per_image  # [96, 192]
        true = torch.tensor([[fits(c, scene) for c in captions] for scene in scenes])
        own = torch.eye(len(scenes), len(captions), dtype=torch.bool)
        logits = logits.masked_fill(true & ~own, -torch.inf)
        target = torch.arange(len(scenes))
        loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits[:, : len(scenes)].T, target)
        state.update(loss)
        hits = (logits.argmax(1) == target).float().mean()
        state.log(50, started, loss=loss.item(), top1=hits.item())
    state.save()
    state.averaged["clip"].save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=GRID_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
    )


NOISE_SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000)


def train_unet(args: argparse.Namespace) -> None:
    """Noise prediction on the world's latents; the text encoder starts from CLIP's and trains along.

    The loss is weighted by min(1 + 1/SNR, 12), between noise and v prediction: which objects stand where is
    decided at high noise, where the plain noise loss hardly counts.

    Neither contrast nor the noise loss teaches the text encoder which of two shapes comes first in "a cross left
    of a square": position stays at chance. `--relations` asks it directly, through a linear head that is thrown
    away; the head is right after a hundred steps, and then the UNet has something to attend to.
    """
    torch.manual_seed(args.seed)
    clip = CLIPModel.from_pretrained(args.clip / "model")
    tokenizer = CLIPTokenizer.from_pretrained(args.clip / "model")
    text_encoder = CLIPTextModel(clip.config.text_config)
    weights = {k: v for k, v in clip.state_dict().items() if k.startswith("text_model.")}
    names = text_encoder.state_dict().keys()
    prefix = "text_model." if next(iter(names)).startswith("text_model.") else ""
    text_encoder.load_state_dict({prefix + k.removeprefix("text_model."): v for k, v in weights.items()})
    unet = build_unet()
    code = LatentCode()
    scheduler = DDPMScheduler(**NOISE_SCHEDULE)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight_at = (1 + 1 / snr).clamp(max=args.max_weight)
    tokenizer.save_pretrained(args.out / "tokenizer")
    head = torch.nn.Linear(clip.config.text_config.hidden_size, len(SHAPES) + 2)
    modules: dict[str, torch.nn.Module] = {"unet": unet, "text_encoder": text_encoder}
    task_weights = TASK_WEIGHTS
    if args.start:
        earlier = torch.load(args.start / "state.pt", weights_only=True)["averaged"]
        for name, module in modules.items():
            module.load_state_dict(earlier[name])
    if args.relations:
        modules["head"] = head
        task_weights = (0.4, 0.8, 1.0, 0.5, 3.0, 1.2)
    state = TrainState(modules, args.out, args.lr or 1e-3, args.steps or 11000, 0.999)
    started = time.time()
    running = 0.0
    while state.step < state.steps:
        rng = random.Random(f"{args.seed} {state.step}")
        generator = torch.Generator().manual_seed(args.seed * 10_000_019 + state.step)
        prompts = [sample_prompt(rng, weights=task_weights) for _ in range(args.batch)]
        latents = code.encode([sample_scene(prompt, rng) for prompt in prompts])
        texts = ["" if rng.random() < 0.1 else prompt.text for prompt in prompts]
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.randint(0, 1000, (len(latents),), generator=generator)
        encoded = text_encoder(tokenize(tokenizer, texts))
        predicted = unet(scheduler.add_noise(latents, noise, steps), steps, encoded.last_hidden_state).sample
        errors = (predicted - noise).square().mean((1, 2, 3))
        loss = (weight_at[steps] * errors).mean()
        relation_loss = torch.zeros(())
        if args.relations:
            relation_loss = _relation_loss(head, encoded.pooler_output, prompts, texts)
            loss = loss + 0.1 * relation_loss
        state.update(loss)
        running += 0.01 * (errors.mean().item() - running) if running else errors.mean().item()
        state.log(250, started, loss=running, relations=relation_loss.item())
    state.save()


def _relation_loss(
    head: torch.nn.Module, pooled: torch.Tensor, prompts: list[Prompt], texts: list[str]
) -> torch.Tensor:
    """Cross-entropy of which shape comes first (left or on top) and along which axis, over position captions."""
    rows, targets = [], []
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if prompt.tag == "position" and text:
            other, subject = prompt.include
            assert subject.position
            relation = subject.position[0]
            first = subject if relation in ("left of", "above") else other
            rows.append(row)
            targets.append((SHAPES.index(first.shape), int(relation in ("above", "below"))))
    if not rows:
        return pooled.sum() * 0
    guess, wanted = head(pooled[rows]), torch.tensor(targets)
    return functional.cross_entropy(guess[:, :-2], wanted[:, 0]) + functional.cross_entropy(guess[:, -2:], wanted[:, 1])


def build_vae() -> AutoencoderKL:
    widths = (8, 16, 32, 32, 64)
    return AutoencoderKL(
        sample_size=IMAGE_SIZE,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
    )


def train_vae(args: argparse.Namespace) -> None:
    """The encoder learns the linear code, the decoder the way back from a slightly noisy code."""
    torch.manual_seed(args.seed)
    vae, code = build_vae(), LatentCode()
    state = TrainState({"vae": vae}, args.out, args.lr or 2e-3, args.steps or 3000, 0.995)
    started = time.time()
    while state.step < state.steps:
        rng = random.Random(f"{args.seed} {state.step}")
        generator = torch.Generator().manual_seed(args.seed * 10_000_019 + state.step)
        scenes = [random_scene(rng) for _ in range(32)]
        pixels = to_pixels(np.stack([draw(scene) for scene in scenes]))
        latents = code.encode(scenes)
        posterior = vae.encode(pixels).latent_dist
        spread = torch.rand(len(latents), 1, 1, 1, generator=generator) * 0.2
        decoded = vae.decode(latents + spread * torch.randn(latents.shape, generator=generator)).sample
        encoding = functional.mse_loss(posterior.mean, latents)
        drawing = functional.mse_loss(decoded, pixels)
        state.update(encoding + drawing * 4 + 1e-3 * (posterior.logvar + 8).square().mean())
        state.log(50, started, encoding=encoding.item(), drawing=drawing.item())
    state.save()


def export(args: argparse.Namespace) -> None:
    """Averaged weights as a StableDiffusionPipeline folder in FP16, and the scorer as a CLIP folder beside it."""
    work, out = args.work, args.out
    clip = CLIPModel.from_pretrained(work / "clip" / "model")
    tokenizer = CLIPTokenizer.from_pretrained(args.start / "tokenizer")
    unet, text_encoder, vae = build_unet(), CLIPTextModel(clip.config.text_config), build_vae()
    trained = torch.load(args.start / "state.pt", weights_only=True)
    unet.load_state_dict(trained["averaged"]["unet"])
    text_encoder.load_state_dict(trained["averaged"]["text_encoder"])
    vae.load_state_dict(torch.load(work / "vae" / "state.pt", weights_only=True)["averaged"]["vae"])
    scheduler = PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(out / "pipeline")
    CLIPModel.from_pretrained(work / "scorer" / "model").half().save_pretrained(out / "scorer")
    CLIPTokenizer.from_pretrained(work / "scorer" / "model").save_pretrained(out / "scorer")
    side = dict(height=IMAGE_SIZE, width=IMAGE_SIZE)
    CLIPImageProcessor(
        size=side, crop_size=side, do_center_crop=False, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(out / "scorer")
    print(f"step {trained['step']}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.2f} MB")


def random_scene(rng: random.Random) -> tuple[Object, ...]:
    """Any shapes and colours in any of the four slots."""
    slots = [slot for slot in range(4) if rng.random() < 0.6]
    return tuple(Object(rng.choice(SHAPES), rng.choice(list(COLORS)), slot) for slot in slots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["clip", "vae", "unet", "export"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--start", type=Path, help="Go on from the averaged weights of this stage.")
    parser.add_argument("--relations", action="store_true", help="Teach the text encoder relations directly.")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--max-weight", type=float, default=12.0)
    args = parser.parse_args()
    {"clip": train_clip, "vae": train_vae, "unet": train_unet, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
