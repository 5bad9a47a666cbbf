"""What all arms of a table share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from bitsfusion.devices import AUTO, NAME_PATTERN
from bitsfusion.diffusion.samplers import Sampler
from bitsfusion.io.schema import Checked
from bitsfusion.pipelines.load import EMBEDDED
from bitsfusion.runs.config import EvaluationSection, RunConfig, ServeSection, WorldSource
from bitsfusion.training.config import TrainingConfig


class Settings(Checked):
    """The same for every arm: model, data, training steps, prompts, image seeds."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Training seeds: one model each."""
    steps: int = Field(200, ge=1)
    """Steps of Stage I; Stage II has half as many."""
    train_batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    """In Stage I, cosine to zero; a third of it in Stage II."""
    pool: int = Field(4096, ge=1)
    """Captioned scenes of the drawn world."""
    per_task: int = Field(50, ge=1)
    """Prompts of each of the six tasks."""
    split: Literal["validation", "test"] = "test"
    """Which prompts: settings are chosen on validation prompts, and reported on test prompts."""
    guidance: tuple[float, ...] = Field((7.5,), min_length=1)
    """Every image set is drawn at each; the paper averages Table 4 over 3.5, 5.5, 7.5 and 9.5."""
    sampler_steps: int = Field(50, ge=1)
    """Steps of PNDM."""
    probe_samples: int = Field(512, ge=1)
    """Noisy latents of the teacher error."""
    target_bits: float = Field(1.99, gt=0)
    device: str = Field(AUTO, pattern=NAME_PATTERN)
    """Where all of it computes but the rivals' own calibration; changes rounding only, and is no input of any step."""
    sensitivity: Path | None = None
    """A table of the embedded model from `bitsfusion analyze`; null: measured here by noise error, in seconds."""

    @field_validator("seeds", "guidance")
    @classmethod
    def _different(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) != len(values):
            raise ValueError("wanted none twice")
        return values

    @property
    def fine_tuning_steps(self) -> int:
        """Stage II's steps."""
        return max(1, self.steps // 2)

    def run_config(self) -> RunConfig:
        """The same as a run's config: model, data, sampler and prompts."""
        return RunConfig(
            model=EMBEDDED,
            device=self.device,
            data=WorldSource(pool=self.pool),
            seeds=self.seeds,
            serve=ServeSection(samplers={Sampler.PNDM: self.sampler_steps}),
            evaluation=EvaluationSection(
                per_task=self.per_task,
                split=self.split,
                steps=self.sampler_steps,
                guidance=self.guidance[0],
                batch_size=50,
                probe_samples=self.probe_samples,
            ),
        )

    def stage(self, number: int) -> TrainingConfig:
        """Stage I without feature distillation, at uniform time steps; or Stage II. Arms change what they test."""
        first = number == 1
        return TrainingConfig.model_validate(
            {
                "stage": number,
                "device": self.device,
                "train_batch_size": self.train_batch_size,
                "learning_rate": self.learning_rate if first else self.learning_rate / 3,
                "lr_scheduler": "cosine",
                "max_train_steps": self.steps if first else self.fine_tuning_steps,
                "feature_weight": 0.0,
                "timesteps": {"kind": "uniform"},
                "checkpointing_steps": 50,
                "checkpoints_total_limit": 1,
            }
        )
