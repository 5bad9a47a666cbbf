"""The command line of a world's making: one stage after the other; a stage that is run again continues."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from bitsfusion.embedded.world import GRID_SIZE, IMAGE_SIZE
from bitsfusion_lab.embedding.clip import train_clip
from bitsfusion_lab.embedding.export import export_pipeline, export_scorer
from bitsfusion_lab.embedding.state import averaged_weights
from bitsfusion_lab.embedding.unet import build_text_encoder, build_unet, train_unet
from bitsfusion_lab.embedding.vae import build_vae, train_vae
from bitsfusion_lab.embedding.world import TrainedWorld

STAGES = ("unet", "vae", "scorer", "export")


def run_stages(world: TrainedWorld, description: str, steps: dict[str, int], names: tuple[str, str]) -> None:
    """Reads the command line and does the stage asked for.

    Args:
        world: whose model is made.
        description: what `--help` says.
        steps: how many each stage that trains takes when the command doesn't say.
        names: of the pipeline's and the scorer's folder.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="Keeps the trainings, a folder a stage.")
    parser.add_argument("--out", type=Path, help="Gets the exported folders.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    if args.stage == "export":
        if args.out is None:
            parser.error("export: wanted --out, the folder that gets the model")
        print(f"pipeline {_export(world, args.work, args.out / names[0]):.2f} MB")
        if (args.work / "scorer" / "model").exists():
            size = export_scorer(args.work / "scorer" / "model", args.out / names[1], IMAGE_SIZE)
            print(f"scorer {size:.2f} MB")
        return
    folder, count = args.work / args.stage, args.steps or steps[args.stage]
    if args.stage == "unet":
        train_unet(world, folder, steps=count, seed=args.seed)
    elif args.stage == "vae":
        train_vae(world, folder, steps=count, seed=args.seed)
    else:
        train_clip(world, folder, steps=count, seed=args.seed)


def _export(world: TrainedWorld, work: Path, out: Path) -> float:
    tokenizer = CLIPTokenizer.from_pretrained(work / "unet" / "tokenizer")
    unet, text_encoder = build_unet(world.channels, GRID_SIZE), build_text_encoder(tokenizer)
    vae = build_vae(world.channels, IMAGE_SIZE)
    trained = averaged_weights(work / "unet")
    parts: list[tuple[torch.nn.Module, dict[str, torch.Tensor]]] = [
        (unet, trained["unet"]),
        (text_encoder, trained["text_encoder"]),
        (vae, averaged_weights(work / "vae")["vae"]),
    ]
    for module, weights in parts:
        module.load_state_dict(weights)
    return export_pipeline(out, unet=unet, text_encoder=text_encoder, vae=vae, tokenizer=tokenizer)
