"""Text encoder and VAE calibrated, at fewer bits than `init --whole` takes: images of the embedded model.

    python tools/calibrated_components.py [--per-task 10] [--text 3,4] [--vae 5 4 3] [--unet STUDENT]

Each row is a text encoder (linear layers, token embedding) and a VAE, packed as `bitsfusion init` packs them, beside a
UNet in full precision, or a student's. Image errors are against the dense pipeline (same prompts and seeds), and their
differences from those of today's plain whole pipeline. Bytes are of the embedded model's two components on disk.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from component_bits import packed_apart, states
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

import bitsfusion  # noqa: F401  registers the format
from bitsfusion.calibration.calibrate import Calibration
from bitsfusion.calibration.components import calibrate_component, component_calls
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import Call
from bitsfusion.embedded.quick import QUICK
from bitsfusion.evaluation.prompts import PromptSet, world_prompts
from bitsfusion.metrics.image_error import mse
from bitsfusion.metrics.intervals import bootstrap_mean_interval
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.components import WHOLE, OtherBits
from bitsfusion.runs.prompts import prompts_of
from bitsfusion.training.checkpoint import load_student

CLASSES = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL}
COLUMNS = (
    "text encoder",
    "VAE",
    "GenEval",
    "image MSE",
    "its median",
    "against plain (95 %)",
    "states, PSNR dB",
    "bytes",
)


@functools.cache
def drawn_calls() -> tuple[Any, Mapping[str, Mapping[str, list[Call]]]]:
    """The original, and what its components are called with: see `component_calls`."""
    pipeline = load_pipeline("embedded")
    return pipeline, component_calls(pipeline, list(CLASSES), prompts_of("embedded"), CalibrationSettings())


def packed(name: str, others: OtherBits, calibrated: bool) -> tuple[nn.Module, int]:
    """A component as it is read from a packed folder, and its bytes there."""

    def calibrator(bits: Mapping[str, Mapping[str, int]]) -> Mapping[str, Calibration]:
        pipeline, calls = drawn_calls()
        model, settings = pipeline.components[name].eval(), CalibrationSettings()
        return {name: calibrate_component(model, bits[name], calls[name], settings)}

    with packed_apart("embedded", (name,), others, calibrator if calibrated else None) as out:
        size = sum(file.stat().st_size for file in (out / name).rglob("*") if file.is_file())
        return CLASSES[name].from_pretrained(out / name).eval(), size


def drawn_latents(pipeline: Any, prompts: PromptSet) -> list[Tensor]:
    """What the VAE is given for one image a prompt, PNDM, 50 steps, guidance 7.5."""
    kept: list[Tensor] = []
    hook = pipeline.vae.post_quant_conv.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    generate_images(pipeline, prompts.texts, prompts.seeds, batch_size=60)
    hook.remove()
    return kept


@torch.no_grad()
def decoded(vae: Any, latents: list[Tensor]) -> np.ndarray:
    """[n, h, w, 3] uint8."""
    pictures = torch.cat([vae.decode(batch).sample for batch in latents])
    return (((pictures / 2 + 0.5).clamp(0, 1) * 255).round()).byte().permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-task", type=int, default=10, help="images of each of the six tasks")
    parser.add_argument("--text", nargs="*", default=["3,4"], help="bits of linear layers and tokens")
    parser.add_argument("--vae", nargs="*", default=["5", "4", "3"], help="bits, or a recipe file")
    parser.add_argument("--unet", type=Path, help="a student's folder, of a calibrated start or a training, instead")
    chosen = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    dense, prompts = load_pipeline("embedded"), world_prompts(QUICK, "test", chosen.per_task, seed=1024)

    @functools.cache
    def vae(bits: str, calibrated: bool) -> tuple[Any, int]:
        return packed("vae", OtherBits(vae=bits), calibrated)

    reference_latents = drawn_latents(dense, prompts)
    reference = decoded(dense.vae, reference_latents)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    print(f"| dense | dense | {np.mean(prompts.check(reference)):.3f} |{' |' * 5}", flush=True)
    wanted = states(dense, prompts)
    today = f"{WHOLE.text_encoder},{WHOLE.token_embedding}"
    plain: np.ndarray | None = None
    for text, calibrated in ((today, False), *((text, True) for text in chosen.text)):
        linear, tokens = text.split(",")
        pipeline = copy.copy(dense)
        if chosen.unet is not None:
            pipeline.unet = load_student(chosen.unet)
        pipeline.text_encoder, size = packed("text_encoder", OtherBits(linear, None, int(tokens)), calibrated)
        latents, of_text = drawn_latents(pipeline, prompts), states(pipeline, prompts)
        clean = float(wanted.square().sum() / (of_text - wanted).square().sum())
        which = chosen.vae if calibrated else [str(WHOLE.vae)]
        for bits in which:
            made, of_vae = vae(bits, calibrated)
            images = decoded(made, latents)
            errors = mse(images, reference)
            plain = errors if plain is None else plain
            low, high = bootstrap_mean_interval(errors - plain)
            alone = mse(decoded(made, reference_latents), reference).mean()
            kind = "calibrated" if calibrated else "plain"
            cells = (
                f"{kind} {text}",
                f"{kind} {Path(bits).stem}",
                f"{np.mean(prompts.check(images)):.3f}",
                f"{errors.mean():.5f}",
                f"{np.median(errors):.6f}",
                f"{(errors - plain).mean():+.5f} ({low:+.5f} to {high:+.5f})",
                f"{10 * np.log10(clean):.1f}, {-10 * np.log10(alone):.1f}",
                f"{size:,} + {of_vae:,}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
