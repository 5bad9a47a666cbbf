"""Options of a training stage, under the names of diffusers' train_text_to_image.py; presets are values."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitsfusion.errors import InputError


class TimeStepConfig(BaseModel):
    """How time steps are drawn: Beta(alpha, beta) over all steps (section 4.2), or uniformly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["beta", "uniform"] = "beta"
    alpha: float = Field(3.0, gt=0)
    beta: float = Field(1.0, gt=0)


class TrainingConfig(BaseModel):
    """One stage of training.

    Batch sizes are in samples and per process: an optimizer step sees
    train_batch_size x gradient_accumulation_steps x processes of them. Steps are optimizer steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal[1, 2] = 1
    train_batch_size: int = Field(32, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    learning_rate: float = Field(1e-5, gt=0)
    scale_learning_rate: float | None = Field(None, gt=0)
    """Of the quantizer's scales; null: the same as the weights'."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    lr_warmup_steps: int = Field(0, ge=0)
    max_train_steps: int = Field(20_000, ge=1)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_weight_decay: float = Field(1e-2, ge=0)
    """Of all parameters but the scales, which are never decayed."""
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Of the averaged weights and scales that the stage returns; null: no average is kept."""
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

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError("lr_warmup_steps has no effect with lr_scheduler constant, wanted constant_with_warmup")
        if self.lr_warmup_steps >= self.max_train_steps:
            raise ValueError(
                f"lr_warmup_steps {self.lr_warmup_steps} leaves none of {self.max_train_steps} max_train_steps"
            )
        return self

    def for_processes(self, count: int) -> TrainingConfig:
        """The same total batch over `count` processes: fewer accumulation steps in each.

        Raises:
            InputError: the accumulation steps do not divide by `count`.
        """
        if self.gradient_accumulation_steps % count:
            raise InputError(
                f"gradient_accumulation_steps: got {self.gradient_accumulation_steps}, wanted a multiple of {count}, "
                "the number of processes"
            )
        return self.model_copy(update={"gradient_accumulation_steps": self.gradient_accumulation_steps // count})

    def deciding(self) -> dict[str, Any]:
        """The options that the result depends on, as JSON; a resumed run must repeat them."""
        return self.model_dump(
            mode="json", exclude={"checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint"}
        )


PAPER_STAGE1 = TrainingConfig(stage=1, train_batch_size=32, gradient_accumulation_steps=8, max_train_steps=20_000)
"""Section 4.2's Stage I: 256 samples a step, as one process sees them (the paper: 8 processes)."""

PAPER_STAGE2 = TrainingConfig(stage=2, train_batch_size=32, gradient_accumulation_steps=32, max_train_steps=50_000)
"""Section 4.2's Stage II: 1024 samples a step, as one process sees them (the paper: 32 processes)."""
