"""Options of a training stage, under the names of diffusers' train_text_to_image.py; presets are values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from bitsfusion.devices import AUTO, NAME_PATTERN
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.schema import Checked
from bitsfusion.io.texts import read_json


def _no_as_text(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a plain no as false


class TimeStepConfig(Checked):
    """How time steps are drawn: Beta(alpha, beta) (section 4.2), uniform, logit-normal, by mode, as a measured curve
    says, or a step-distilled model's own few."""

    kind: Literal["beta", "uniform", "logit_normal", "mode", "measured", "few"] = "beta"
    alpha: float = Field(3.0, gt=0)
    beta: float = Field(1.0, gt=0)
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    """Standard deviation of `logit_normal`'s normal variable, whose mean is `mean`."""
    mode_scale: float = Field(1.29, ge=-1, le=2 / (math.pi - 2))
    """Of `mode`: how much the middle is preferred (above 0) or both ends are; 1.29 is Stable Diffusion 3's."""
    steps: int | None = Field(None, ge=1)
    """For `few`: how many sampler steps the model is made for; times are T, T (1 - 1 / steps), ... before the shift."""
    curve: Path | None = None
    """For `measured`: the file that `bitsfusion timesteps` wrote; a step is drawn in proportion to its error."""

    @model_validator(mode="after")
    def _check(self) -> TimeStepConfig:
        if (self.kind == "measured") != (self.curve is not None):
            raise ValueError(f"curve: got {self.curve} with kind {self.kind}, wanted a file with kind measured only")
        if (self.kind == "few") != (self.steps is not None):
            raise ValueError(f"steps: got {self.steps} with kind {self.kind}, wanted a number with kind few only")
        return self


class TrainingConfig(Checked):
    """One stage of training.

    train_batch_size is in samples, for one process at a time: an optimizer step sees train_batch_size x
    gradient_accumulation_steps x processes of them. Steps are optimizer steps. What a step trains on does not depend
    on how its samples are split.
    """

    stage: Literal[1, 2] = 1
    train_batch_size: int = Field(32, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    total_batch_size: int | None = Field(None, ge=1)
    """Samples of an optimizer step over all processes; where given, it decides the accumulation steps."""
    device: str = Field(AUTO, pattern=NAME_PATTERN)
    """Where it trains, see `devices.resolve`."""
    gradient_checkpointing: bool = False
    trained: Literal["all", "light"] = "all"
    """light: scales, biases and norms alone, for a small GPU: hardly any gradients, moments and averages. The weights
    stay, which wants a calibrated start."""
    learning_rate: float = Field(1e-5, gt=0)
    scale_learning_rate: float | None = Field(None, gt=0)
    """For the quantizer's scales, as a ratio: a step changes a scale by this part of it; null: the weights' number."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = Field(0, ge=0)
    max_train_steps: int = Field(20_000, ge=1)
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_no_as_text)] = "no"
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of the teacher's weights; the 16-bit ones halve its memory."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit moments, from bitsandbytes."""
    shard: bool = False
    """Weights, gradients and moments in parts over the processes (FSDP2) instead of whole in each (DDP)."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_weight_decay: float = Field(1e-2, ge=0)
    """For all parameters but the scales, which are never decayed."""
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """For the averaged weights and scales that the stage returns; null: no average is kept."""
    text_dropout: float = Field(0.1, ge=0, le=1)
    """Probability p of the null prompt (Eq. 6)."""
    feature_weight: float = Field(0.01, ge=0)
    """lambda, the weight of the feature distillation loss; Stage I only."""
    timesteps: TimeStepConfig = TimeStepConfig()
    seed: int = Field(0, ge=0)
    logging_steps: int = Field(10, ge=1)
    checkpointing_steps: int | None = Field(500, ge=1)
    """Null: no checkpoints, only the final weights."""
    checkpoints_total_limit: int | None = Field(2, ge=1)
    resume_from_checkpoint: str | None = "latest"
    """"latest" in the output folder where there is one, a checkpoint's path, or null to insist on a fresh start."""
    report_to: Literal["tensorboard", "wandb"] | None = None
    """Also log to this tracker, through Accelerate."""
    validation_prompts: tuple[str, ...] = ()
    """Drawn with the student (its averages, where kept) every validation_steps and at the end."""
    validation_steps: int | None = Field(None, ge=1)
    validation_inference_steps: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError("lr_warmup_steps has no effect with lr_scheduler constant, wanted constant_with_warmup")
        if self.lr_warmup_steps >= self.max_train_steps:
            raise ValueError(
                f"lr_warmup_steps {self.lr_warmup_steps} leaves none of {self.max_train_steps} max_train_steps"
            )
        if self.shard and self.mixed_precision == "fp16":
            raise ValueError("mixed_precision: got fp16 with shard, wanted bf16 or no")
        if self.total_batch_size and self.gradient_accumulation_steps != 1:
            raise ValueError("gradient_accumulation_steps: wanted none beside total_batch_size, which decides them")
        if self.validation_steps and not self.validation_prompts:
            raise ValueError("validation_prompts: got none, wanted one or more with validation_steps")
        return self

    def accumulation(self, processes: int) -> int:
        """How many micro-batches of train_batch_size each of `processes` makes of a step.

        Raises:
            InputError: total_batch_size is no multiple of train_batch_size x processes.
        """
        if self.total_batch_size is None:
            return self.gradient_accumulation_steps
        together = self.train_batch_size * processes
        if self.total_batch_size % together:
            raise InputError(
                f"total_batch_size: got {self.total_batch_size}, wanted a multiple of {together}: "
                f"train_batch_size {self.train_batch_size} in each of {processes} processes"
            )
        return self.total_batch_size // together

    def deciding(self, processes: int = 1) -> dict[str, Any]:
        """The options that the result depends on, as JSON; a resumed run must repeat them.

        How a step's samples are split over processes and micro-batches is none of them, and neither is the device: they
        change the rounding only.
        """
        split = {
            "train_batch_size",
            "gradient_accumulation_steps",
            "total_batch_size",
            "gradient_checkpointing",
            "shard",
            "device",
        }
        kept = {"checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to"}
        shown = {"validation_prompts", "validation_steps", "validation_inference_steps"}
        samples = self.train_batch_size * self.accumulation(processes) * processes
        usual = {"trained"} if self.trained == "all" else set()  # so that older runs resume
        options = self.model_dump(mode="json", exclude=split | kept | shown | usual)
        for kind, name in (("mode", "mode_scale"), ("few", "steps")):
            if self.timesteps.kind != kind:  # so that older runs resume
                del options["timesteps"][name]
        if self.timesteps.curve:
            options["timesteps"]["curve"] = sha256_json(read_json(self.timesteps.curve))
        return {"samples_per_step": samples, "scale_steps": "relative", **options}


PAPER_STAGE1 = TrainingConfig(stage=1, train_batch_size=32, total_batch_size=256, max_train_steps=20_000)
"""Section 4.2's Stage I: 256 samples a step."""

PAPER_STAGE2 = TrainingConfig(stage=2, train_batch_size=32, total_batch_size=1024, max_train_steps=50_000)
"""Section 4.2's Stage II: 1024 samples a step."""
