"""A pipeline's UNet calibrated for `init` and for training: its prompts, its trajectories, its layers."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitsfusion.calibration.calibrate import Calibration, calibrate
from bitsfusion.calibration.components import calibrate_component, component_calls
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import trajectories
from bitsfusion.devices import AUTO, placed, resolve
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.io.hashes import sha256_json
from bitsfusion.pipelines.load import check_draws_from_text
from bitsfusion.progress import ProgressSink
from bitsfusion.runs.prompts import prompts_of

CALIBRATED = "calibrated"
"""What `scale_init` is called where scales and codes come from a calibration."""


@dataclass(frozen=True)
class CalibrationJob:
    """What to calibrate with.

    Fields:
        prompts: a file of prompts; None: the package's own, of its drawn world for an embedded model.
        settings: see there.
        device: where the model runs, see `devices.resolve`.
    """

    prompts: Path | None = None
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    device: str = AUTO

    def texts(self, model: str) -> tuple[str, ...]:
        """The prompts, in order.

        Raises:
            InputError: the file cannot be read or has none.
        """
        return prompts_of(model, self.prompts)

    def provenance(self, model: str) -> dict[str, Any]:
        """Plain JSON: what the result depends on beside the model and its bits."""
        settings = self.settings.model_dump(mode="json")
        return {"scale_init": CALIBRATED, "calibration": settings | {"prompts_sha256": sha256_json(self.texts(model))}}

    def folder(self, out: Path, model: str, source_sha256: str, bits: Mapping[str, int]) -> Path:
        """Where what is done is kept while `out` is being made: a hidden folder beside it, one for each such work."""
        work = sha256_json([source_sha256, dict(bits), self.provenance(model)])
        return out.parent / f".{out.name}.calibration-{work[:16]}"

    def run_others(
        self,
        pipeline: Any,
        model: str,
        bits: Mapping[str, Mapping[str, int]],
        progress: ProgressSink,
        folder: Path | None = None,
    ) -> dict[str, Calibration]:
        """Calibrates text encoders and VAE of a loaded pipeline, each by itself, the denoiser being the original.

        Args:
            bits: by component, then by layer.
            folder: as `run`; each component has one of its own in it.
        """
        device, made = resolve(self.device), {}
        with placed(pipeline, device):
            with progress.timed("pictures"):
                calls = component_calls(pipeline, list(bits), self.texts(model), self.settings)
            for name, of_component in bits.items():
                own = None if folder is None else folder / f"{name}-{sha256_json(dict(of_component))[:16]}"
                with progress.timed(f"calibrate {name}") as tell:
                    component = pipeline.components[name].eval()
                    made[name] = calibrate_component(component, of_component, calls[name], self.settings, tell, own)
        return made

    def run(
        self, pipeline: Any, model: str, bits: Mapping[str, int], progress: ProgressSink, folder: Path | None = None
    ) -> Calibration:
        """Calibrates the denoiser of a loaded pipeline on the device; the pipeline is as before afterwards.

        Once the trajectories are drawn, nothing but the denoiser is held: its other components are free to go.

        Args:
            folder: see `folder`; None keeps nothing on disk.

        Raises:
            InputError: the device, prompts or activations cannot be used.
        """
        check_draws_from_text(pipeline)
        texts = self.texts(model)
        unet = pipeline_denoiser(pipeline).eval()
        device = resolve(self.device)
        with placed(unet, device):
            with placed(pipeline, device), progress.timed("trajectories") as tell:
                calls = trajectories(pipeline, unet, texts, self.settings, tell)
            del pipeline
            gc.collect()  # a pipeline may hold itself
            with progress.timed("calibrate") as tell:
                return calibrate(unet, bits, calls, self.settings, tell, folder)
