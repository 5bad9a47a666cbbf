"""What bits the text encoder and the VAE need: images of the embedded model, sizes in SD-v1.5's shape.

    python tools/component_bits.py [--per-task 20] [--sizes SD15]     # SD15: python tools/shaped_pipeline.py sd15 SD15

Each row packs one thing as `bitsfusion init` does and leaves the UNet in full precision, so that all that differs from
the dense pipeline's images (same prompts, seeds) is that thing. A text encoder's layers are always packed together:
while its linear layers vary, its token embedding has 8 bits, and the other way round. Output SQNR is of the text
states of the prompts, or of the VAE's decoded pictures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

import bitsfusion  # noqa: F401  registers the format
from bitsfusion.artifact.inspect import inspect_pipeline
from bitsfusion.artifact.writer import write_parts
from bitsfusion.embedded.quick import QUICK
from bitsfusion.evaluation.prompts import PromptSet, world_prompts
from bitsfusion.metrics.geneval import GenEvalResult, geneval_summary
from bitsfusion.metrics.image_error import mse
from bitsfusion.metrics.intervals import bootstrap_mean_interval
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.folder import read_folder
from bitsfusion.pipelines.generation import generate_images, initial_latents
from bitsfusion.pipelines.load import load_pipeline, pipeline_folder
from bitsfusion.progress import SILENT
from bitsfusion.runs.components import Calibrator, OtherBits, other_parts
from bitsfusion.runs.packing import init_pipeline

BITS = (3, 4, 5, 6, 8)
WHOLE = ((4, 4, 4), (4, 6, 4), (4, 5, 5), (5, 6, 5), (6, 6, 6))  # linear layers, token embedding, VAE
COLUMNS = ("packed", "GenEval (95 %)", "against dense (95 %)", "image MSE", "its median", "output SQNR dB", "MB")

Sizes = dict[tuple[str, int], int]
"""Thing, bits -> bytes on disk."""


def rows(sizes: Sizes) -> Iterator[tuple[str, OtherBits, int]]:
    """Name, what is packed, and the bytes of what varies."""
    for bits in BITS:
        yield f"VAE {bits}", OtherBits(vae=f"{bits}"), sizes.get(("vae", bits), 0)
    for bits in BITS:
        yield f"linear layers {bits}", OtherBits(f"{bits}", token_embedding=8), sizes.get(("linear", bits), 0)
    for bits in BITS:
        yield f"token embedding {bits}", OtherBits("8", token_embedding=bits), sizes.get(("tokens", bits), 0)
    for linear, tokens, vae in WHOLE:
        parts = (("linear", linear), ("tokens", tokens), ("vae", vae))
        name = f"linear layers {linear}, token embedding {tokens}, VAE {vae}"
        yield name, OtherBits(f"{linear}", f"{vae}", tokens), sum(sizes.get(part, 0) for part in parts)


@torch.no_grad()
def states(pipeline: Any, prompts: PromptSet) -> Tensor:
    """[n, tokens, width], of all prompts."""
    length = pipeline.tokenizer.model_max_length
    tokens = pipeline.tokenizer(list(prompts.texts), padding="max_length", max_length=length, return_tensors="pt")
    made: Tensor = pipeline.text_encoder(tokens.input_ids).last_hidden_state
    return made


@torch.no_grad()
def outputs(pipeline: Any, prompts: PromptSet) -> dict[str, Tensor]:
    """Text states of all prompts, and what the VAE makes of some latents."""
    return {
        "text_encoder": states(pipeline, prompts),
        "vae": pipeline.vae.decode(initial_latents(pipeline, prompts.seeds[:32])).sample,
    }


def sqnr(got: Tensor, wanted: Tensor) -> str:
    """In dB."""
    error = (got - wanted).square().sum()
    return "–" if error == 0 else f"{float(10 * (wanted.square().sum() / error).log10()):.1f}"


def quality(dense: Any, others: OtherBits, prompts: PromptSet, reference: np.ndarray) -> list[str]:
    """All columns but the first and the last."""
    with tempfile.TemporaryDirectory() as folder:
        init_pipeline("embedded", Path(folder) / "x", recipe="uniform:2", others=others, method=ScaleInit.COMPACT)
        pipeline = StableDiffusionPipeline.from_pretrained(Path(folder) / "x")
    pipeline.unet = dense.unet
    images = drawn(pipeline, prompts)
    passed, before = (np.asarray(prompts.check(made), dtype=float) for made in (images, reference))
    low, high = bootstrap_mean_interval(passed - before)
    got, wanted = outputs(pipeline, prompts), outputs(dense, prompts)
    packed = [name for name, bits in (("text_encoder", others.text_encoder), ("vae", others.vae)) if bits]
    errors = mse(images, reference)
    return [
        geneval(prompts, passed),
        f"{(passed - before).mean():+.3f} ({low:+.3f} to {high:+.3f})",
        f"{errors.mean():.5f}",
        f"{np.median(errors):.6f}",
        ", ".join(sqnr(got[name], wanted[name]) for name in packed),
    ]


def drawn(pipeline: Any, prompts: PromptSet) -> np.ndarray:
    """One image a prompt, PNDM, 50 steps, guidance 7.5."""
    return generate_images(pipeline, prompts.texts, prompts.seeds, batch_size=24)


def geneval(prompts: PromptSet, passed: np.ndarray) -> str:
    """The score and its interval."""
    results = [GenEvalResult(p.tag, bool(ok)) for p, ok in zip(prompts.asked, passed, strict=True)]
    score = geneval_summary(results)
    return f"{score.overall:.3f} ({score.low:.3f} to {score.high:.3f})"


@contextmanager
def packed_apart(
    model: str, names: Sequence[str], others: OtherBits, calibrator: Calibrator | None = None
) -> Iterator[Path]:
    """The folder of some components of a pipeline, packed as `bitsfusion init` packs them; it goes afterwards."""
    source = pipeline_folder(model).resolve()
    with tempfile.TemporaryDirectory() as folder:
        apart, out = Path(folder) / "source", Path(folder) / "out"  # the same pipeline without its other components
        apart.mkdir()
        index = json.loads((source / "model_index.json").read_text())
        (apart / "model_index.json").write_text(json.dumps({name: index[name] for name in names}))
        for name in names:
            (apart / name).symlink_to(source / name)
        made = other_parts(read_folder(apart), others, ScaleInit.COMPACT, SILENT, calibrator)
        write_parts({name: part for name, (part, _) in made.items()}, read_folder(apart), out)
        yield out


def sizes_of(model: str) -> Sizes:
    """The bytes of the VAE, of the text encoder's token embedding, and of its other weights; up to 6 bits."""
    sizes: Sizes = {}
    for bits in BITS[:-1]:  # at 8 bits the search for scales takes too long to be worth a size
        with packed_apart(model, ("vae", "text_encoder"), OtherBits(f"{bits}", f"{bits}", bits)) as out:
            parts = {part.name: part for part in inspect_pipeline(out)}
        layers = parts["text_encoder"].packed.layers if parts["text_encoder"].packed else ()
        tokens = sum(layer.bytes_on_disk for layer in layers if layer.name.endswith("token_embedding"))
        sizes["vae", bits], sizes["tokens", bits] = parts["vae"].bytes_on_disk, tokens
        sizes["linear", bits] = parts["text_encoder"].bytes_on_disk - tokens
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-task", type=int, default=20, help="images of each of the six tasks")
    parser.add_argument("--sizes", help="a pipeline whose text encoder and VAE are packed at the same bits")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    chosen = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    dense, prompts = load_pipeline("embedded"), world_prompts(QUICK, "test", chosen.per_task, seed=1024)
    reference = drawn(dense, prompts)
    before = geneval(prompts, np.asarray(prompts.check(reference), dtype=float))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n| nothing | {before} |{' |' * 5}", flush=True)
    for name, others, size in rows(sizes_of(chosen.sizes) if chosen.sizes else {}):
        if chosen.only in name:
            cells = [name, *quality(dense, others, prompts, reference), f"{size / 1e6:.1f}" if size else ""]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
