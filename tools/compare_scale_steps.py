"""Scales that step in proportion to themselves against scales that step by AdamW's fixed length, in Stage I.

    python tools/compare_scale_steps.py --out runs/scale_steps [--steps 120] [--batch 64] [--seeds 0 1 2]

The embedded model, the demo's analysis and recipe, a plain start (exact scales), uniform time steps, cosine. Prints for
each seed and arm the error to the teacher on 512 noisy latents of test scenes, and of the layers of 5 to 8 bits the
signal-to-noise ratio of the rounded weights: as they start, as they were trained, and as the best scale would have it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitsfusion.training.loop as loop
from bitsfusion.evaluation.noise import make_probe, mean_squared, predict
from bitsfusion.io.schema import parse
from bitsfusion.nn.replace import fake_quantize_model, fake_quantized_layers
from bitsfusion.numerics import ScaleInit, initial_scale
from bitsfusion.numerics.quantizer import rounded
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.run import Run
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.optimizer import RELATIVE, build_optimizer

FEWEST_BITS = 5


def fixed_steps(student: nn.Module, config: TrainingConfig, device: torch.device) -> tuple[Any, list[str]]:
    """AdamW that moves a scale by the learning rate, whatever its size: what the trainer did at first."""
    made, names = build_optimizer(student, config, device)
    groups = [{key: value for key, value in group.items() if key != RELATIVE} for group in made.param_groups]
    return torch.optim.AdamW(groups, lr=config.learning_rate), names


@torch.no_grad()
def snr(student: nn.Module, best: bool = False) -> list[float]:
    """Of each layer of `FEWEST_BITS` or more, in dB; with its own scale or the best one."""
    found = []
    for layer in fake_quantized_layers(student).values():
        if layer.bits >= FEWEST_BITS:
            scale = initial_scale(layer.weight, layer.bits, ScaleInit.EXACT) if best else layer.scale
            error = (layer.weight - rounded(layer.weight, scale, layer.bits)).square().sum()
            found.append(10 * math.log10(float(layer.weight.square().sum() / error)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scale_steps"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    config = parse(RunConfig, {"data": {"kind": "world", "pool": 4096}, "analysis": {"method": "jacobian"}}, "tool")
    run = Run(config, chosen.out)
    run.execute(until="assign")
    ours = run.workspace
    probe = make_probe(ours.held_out, ours.pipeline, 512, 0)
    wanted = predict(ours.denoiser, probe)
    for seed in chosen.seeds:
        for arm, optimizer in (("in proportion", build_optimizer), ("fixed", fixed_steps)):
            record = chosen.out / f"{seed}-{arm.split()[-1]}.json"
            if record.exists():
                print(record.read_text(encoding="utf-8").strip(), flush=True)
                continue
            student = copy.deepcopy(ours.denoiser)
            fake_quantize_model(student, ours.recipe().bits, ScaleInit.EXACT)
            start = snr(student)
            options = TrainingConfig(
                train_batch_size=chosen.batch,
                learning_rate=3e-4,
                lr_scheduler="cosine",
                max_train_steps=chosen.steps,
                timesteps={"kind": "uniform"},
                seed=seed,
                checkpointing_steps=None,
                resume_from_checkpoint=None,
            )
            loop.build_optimizer = optimizer
            folder = chosen.out / f"{seed}-{arm.split()[-1]}"
            loop.train(student, copy.deepcopy(ours.denoiser), ours.pipeline, ours.data, options, folder)
            error, after, best = mean_squared(predict(student, probe), wanted), snr(student), snr(student, best=True)
            falls = [before - now for before, now in zip(start, after, strict=True)]
            gaps = [there - now for there, now in zip(best, after, strict=True)]
            line = {"seed": seed, "arm": arm, "teacher_error": error, "layers": len(falls)}
            line |= {"snr_start": sum(start) / len(start), "snr_after": sum(after) / len(after)}
            line |= {"best_fallen": max(before - there for before, there in zip(start, best, strict=True))}
            line |= {"most_fallen": max(falls), "most_below_best": max(gaps), "mean_below_best": sum(gaps) / len(gaps)}
            record.write_text(json.dumps(line) + "\n", encoding="utf-8")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
