"""Training, analysis and the time-step curve on every class of diffusion transformer."""

from __future__ import annotations

import copy

import pytest
import torch

from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.data.batches import Batch
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.evaluation.noise import time_step_curve
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.settings import JacobianSettings, NoiseErrorSettings
from bitsfusion.training.config import TrainingConfig
from bitsfusion.training.loop import train

from ..tiny.transformers import CONFIGS, build_transformer_pipeline

CAPTIONS = ("red circle", "blue square", "red square", "circle")
CHANNELS = {"Flux2Transformer2DModel": 16}
"""Of the latents as the model is given them; 4 in the others."""


class Captioned:
    """Random latents with captions."""

    fingerprint = "captioned"

    def __init__(self, pipeline, name) -> None:
        self.conditioner = conditioner_of(pipeline)
        self.shape = (CHANNELS.get(name, 4), 4, 4)
        self.rows = self.conditioner.rows(CAPTIONS)

    def batch(self, step: int, rank: int, world_size: int, size: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        chosen = [(step + index) % len(CAPTIONS) for index in range(size)]
        rows = {name: tensor[chosen] for name, tensor in self.rows.items()}
        return Batch(torch.randn(size, *self.shape, generator=generator), rows, tuple(CAPTIONS[i] for i in chosen))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_student_is_trained_in_both_stages(name, tmp_path):
    pipeline = build_transformer_pipeline(name)
    teacher = pipeline.transformer
    student = copy.deepcopy(teacher)
    fake_quantize_model(student, dict.fromkeys(layers_to_assign(student), 2))
    data = Captioned(pipeline, name)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    for stage in (1, 2):
        config = TrainingConfig(stage=stage, train_batch_size=2, max_train_steps=2, text_dropout=0.5)
        result = train(student, teacher if stage == 1 else None, pipeline, data, config, tmp_path / str(stage))
        assert result.steps == 2 and result.loss > 0
    assert any(not torch.equal(value, before[key]) for key, value in result.student.state_dict().items())


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_measured_and_the_curve_is_drawn(name):
    pipeline = build_transformer_pipeline(name)
    data, model = Captioned(pipeline, name), pipeline.transformer
    names = list(layers_to_assign(model))
    measured = NoiseError(pipeline, NoiseErrorSettings(samples=2, guidance=3.0), data)
    errors = Jacobian(pipeline, JacobianSettings(samples=2, guidance=3.0), data).errors(names)
    modulation = [name for name, layer in layers_to_assign(model).items() if layer.kind == "modulation"]
    for name in {names[0], *modulation[:2]}:  # a first block's is used; what a last one does with the text may not be
        assert measured.measure(name, 1)["mse"] > 0 and errors[name, 1] > 0, name
    student = copy.deepcopy(model)
    fake_quantize_model(student, dict.fromkeys(names, 1))
    assert all(error > 0 for _, error in time_step_curve(student, pipeline, data, points=2, each=2))
