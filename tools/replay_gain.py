"""How much of a forward the noise error saves by keeping what runs before a layer, counted in FLOPs, without weights.

python tools/replay_gain.py FOLDER [more]     # pipeline folders; only unet/config.json is read
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from bitsfusion.architectures.registry import denoiser_of, layers_to_assign
from bitsfusion.diffusion.samples import NoisySamples
from bitsfusion.io.texts import read_json
from bitsfusion.sensitivity.replay import Replay

TOKENS = 77


def flops(run: Callable[[], Any]) -> tuple[int, Any]:
    """What `run` costs, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def tensors(output: Any) -> Iterator[torch.Tensor]:
    """Those in a stage's output."""
    if torch.is_tensor(output):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from tensors(part)


@torch.no_grad()
def gain(folder: Path) -> str:
    """A row of the table."""
    config = read_json(folder / "unet" / "config.json")
    size = config["sample_size"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        sample, conditioning = denoiser_of(unet).example(config, 1, size, TOKENS)
        asked = NoisySamples(sample, torch.empty(1, dtype=torch.int64), conditioning)
    replay = Replay(unet)
    whole, (_, recording) = flops(lambda: replay.record(lambda: asked.predict(unet)))
    rerun = []
    for name in layers_to_assign(unet):
        with replay.replaying(recording, name):
            rerun.append(flops(lambda: asked.predict(unet))[0])
    kept = {id(t): t.numel() * 4 for output in recording.outputs.values() for t in tensors(output)}
    share = sum(rerun) / len(rerun) / whole
    cells = f"{folder.name} | {len(rerun)} | {whole / 1e9:.2f} | {share:.3f} | {1 / share:.2f}"
    return f"| {cells} | {sum(kept.values()) / 1e6:.2f} |"


print(
    "| folder | layers | GFLOP a forward | share run again, mean | gain | MB kept a latent, float32 |\n"
    + "|---|"
    + "---|" * 5
)
for argument in sys.argv[1:]:
    print(gain(Path(argument)))
