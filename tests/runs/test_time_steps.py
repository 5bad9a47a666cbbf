from __future__ import annotations

import copy
import json

import pytest
from PIL import Image

from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.writer import write_pipeline
from bitsfusion.data.drawn import DrawnData
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.report.time_steps import draw_time_steps
from bitsfusion.runs.time_steps import measure_time_steps
from bitsfusion.training.checkpoint import identity, save_student
from bitsfusion.training.time_steps import measured_density, read_curve


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("embedded")


@pytest.fixture(scope="module")
def data(pipeline):
    return DrawnData(pipeline.vae, conditioner_of(pipeline), pool=16)


@pytest.fixture(scope="module")
def student(pipeline):
    unet = copy.deepcopy(pipeline.unet)
    fake_quantize_model(unet, recipe_bits("uniform:2", model_layers(unet)))
    return unet


def test_a_students_curve_can_be_trained_by(pipeline, data, student, tmp_path):
    save_student(tmp_path / "student", student, identity(student, {}, "", 1))
    out = tmp_path / "curve.json"
    curve = measure_time_steps(pipeline, tmp_path / "student", data, out, points=4, each=2)
    assert [step for step, _ in curve] == [249, 499, 749, 999]
    assert list(read_curve(out)) == [tuple(point) for point in curve]
    density = measured_density(read_curve(out), 1000)
    assert density.sum() == pytest.approx(1) and density[999] > density[0]  # as in figure 4
    draw_time_steps(curve, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert min(image.size) > 300
    assert json.loads(out.read_text())["schema_version"] == 1


def test_a_packed_folder_is_measured_at_the_steps_it_covers(pipeline, data, student, tmp_path):
    write_pipeline(pipeline, copy.deepcopy(student), tmp_path / "packed", [("pndm", 5)])
    curve = measure_time_steps(pipeline, tmp_path / "packed", data, tmp_path / "curve.json", points=3, each=2)
    covered = load_pipeline(str(tmp_path / "packed")).unet.time_proj.coverage.steps
    assert len(curve) == 3 and all(step in covered for step, _ in curve)
    assert curve[-1][0] == max(covered)
