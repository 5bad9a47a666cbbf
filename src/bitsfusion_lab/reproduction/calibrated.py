"""Rivals that need no training but calibration inputs: Q-Diffusion, and mixed-bit palettization."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bitsfusion.diffusion.samples import NoisySamples
from bitsfusion.embedded.quick import QUICK
from bitsfusion.io.texts import read_json, write_json
from bitsfusion.progress import Progress
from bitsfusion_lab.reproduction.frame import Frame
from bitsfusion_lab.rivals.adaround import TRAVEL
from bitsfusion_lab.rivals.calibration import drawn_calibration
from bitsfusion_lab.rivals.palettization import layer_psnr, palette_recipe, palettize
from bitsfusion_lab.rivals.q_diffusion import quantize_unet
from bitsfusion_lab.rivals.stored import StoredWeight, read_model, write_model

CAPTIONS_A_TASK = 5
SAMPLES = 256
PSNR_SAMPLES = 32
TARGET = 2.0

_FILE = "diffusion_pytorch_model.safetensors"


class _Stored:
    """A rival whose model is what its file holds."""

    @property
    def name(self) -> str:
        """See `Subject`."""
        raise NotImplementedError

    def made(self, frame: Frame, seed: int) -> dict[str, str]:
        """See `Subject`."""
        return frame.made(f"make-{self.name}-{seed}")

    def load(self, frame: Frame, seed: int) -> Any:
        """See `Subject`: read back from its file."""
        config = json.loads(frame.model.to_json_string())
        return read_model(frame.path / f"rivals/{self.name}/seed-{seed}" / _FILE, config)

    def size(self, frame: Frame, seed: int) -> tuple[float, int]:
        """See `Subject`."""
        values = read_json(frame.path / f"rivals/{self.name}/seed-{seed}" / "size.json")
        return float(values["bits"]), int(values["bytes"])


@dataclass(frozen=True)
class QDiffusion(_Stored):
    """Block reconstruction with as many iterations a block as Stage I has steps; see `rivals.q_diffusion`."""

    bits: int = 4

    @property
    def name(self) -> str:
        """See `Subject`."""
        return f"q_diffusion_{self.bits}"

    @property
    def trained(self) -> bool:
        """Its calibration inputs and their order are drawn by the seed."""
        return True

    def make(self, frame: Frame, seed: int) -> None:
        """See `Subject`."""
        iterations = frame.settings.steps

        def weights(report: Progress) -> tuple[Mapping[str, StoredWeight], float]:
            calibration = _calibration(frame, SAMPLES, seed)
            made = quantize_unet(frame.model, calibration, self.bits, iterations=iterations, seed=seed, progress=report)
            layers = frame.layers
            return made, sum(made[name].bits * layer.numel for name, layer in layers.items()) / frame.weights

        inputs = {"bits": self.bits, "iterations": iterations, "travel": TRAVEL, "samples": SAMPLES, "seed": seed}
        _write(frame, self.name, seed, inputs, weights)


@dataclass(frozen=True)
class Palettized(_Stored):
    """k-means palettes, bits by PSNR; see `rivals.palettization`. Nothing in it is random but the calibration."""

    target_bits: float = TARGET

    @property
    def name(self) -> str:
        """See `Subject`."""
        return f"palettes_{self.target_bits:g}"

    @property
    def trained(self) -> bool:
        """Made once."""
        return False

    def make(self, frame: Frame, seed: int) -> None:
        """See `Subject`."""

        def weights(report: Progress) -> tuple[Mapping[str, StoredWeight], float]:
            layers = frame.layers
            counts = {name: layer.numel for name, layer in layers.items()}
            psnr = layer_psnr(frame.model, _calibration(frame, PSNR_SAMPLES, seed), report)
            bits, _ = palette_recipe(psnr, counts, self.target_bits)
            made = {name: palettize(frame.model.get_submodule(name).weight, b) for name, b in bits.items()}
            return made, sum(bits[name] * count for name, count in counts.items()) / frame.weights

        inputs = {"target_bits": self.target_bits, "samples": PSNR_SAMPLES, "seed": seed}
        _write(frame, self.name, seed, inputs, weights)


def _calibration(frame: Frame, samples: int, seed: int) -> NoisySamples:
    captions = [prompt.text for prompt in QUICK.prompt_set("train", CAPTIONS_A_TASK)]
    return drawn_calibration(frame.workspace.pipeline, captions, samples, seed=seed)


Make = Callable[[Progress], tuple[Mapping[str, StoredWeight], float]]
"""(progress) -> (what stands for each layer's weight, average bits as the method counts them)."""


def _write(frame: Frame, name: str, seed: int, inputs: Mapping[str, Any], make: Make) -> None:
    """A step that makes a rival's folder: its file, and its bits and bytes."""
    step, folder = f"make-{name}-{seed}", f"rivals/{name}/seed-{seed}"

    def work() -> None:
        weights, bits = make(frame.workspace.progress.step(step))
        size = write_model(frame.path / folder / _FILE, frame.model, weights)
        per_layer = {layer: weight.bits for layer, weight in weights.items()}
        write_json(
            frame.path / folder / "size.json", {"schema_version": 1, "bits": bits, "bytes": size, "layers": per_layer}
        )

    frame.step(step, {**inputs, "captions": CAPTIONS_A_TASK}, [folder], work)
