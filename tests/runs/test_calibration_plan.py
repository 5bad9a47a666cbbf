"""The plan's counts against a real forward pass and against work done."""

from __future__ import annotations

import pytest
import torch

from bitsfusion.architectures.registry import DENOISERS, model_layers
from bitsfusion.calibration.moments import row_count
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.cli.main import main
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.calibration_plan import plan_calibration

from ..tiny.transformers import CONFIGS, build_transformer
from ..tiny.unet import build_unet

SETTINGS = CalibrationSettings(samples=2, steps=3, size=4)


def counted(settings: CalibrationSettings = SETTINGS):
    config = {key: value for key, value in build_unet().config.items() if not key.startswith("_")}
    return plan_calibration(config, 8, settings, 1e9)


def test_moments_are_those_of_the_rows_that_a_forward_pass_has():
    unet, wanted, widths = build_unet(), [], []

    def count(layer, inputs, output):
        rows = row_count(layer, output) * 2 * 3 * 3  # pictures, steps; both halves of guidance and their mixture
        columns, outputs = layer.weight[0].numel(), len(layer.weight)
        wanted.append(2 * 2 * rows * columns * (columns + outputs))  # multiply and add, in float64
        widths.append(columns)

    layers = [module for module in unet.modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    for layer in layers:
        layer.register_forward_hook(count)
    with torch.no_grad():
        unet(torch.randn(1, 4, 4, 4), torch.tensor([1]), torch.randn(1, 8, 16))
    plan = counted()
    assert (plan.layers, plan.widest) == (len(layers), max(widths))
    assert plan.moment_flops == sum(wanted)
    assert plan.bytes["weights"] == 4 * sum(parameter.numel() for parameter in unet.parameters())


def test_more_to_do_takes_longer():
    plan, capped = counted(), counted(SETTINGS.model_copy(update={"rows": 1}))
    longer, idle = (counted(SETTINGS.model_copy(update=change)) for change in ({"steps": 6}, {"sweeps": 0}))
    assert longer.forward_flops == 2 * plan.forward_flops and longer.solving_flops == plan.solving_flops
    assert capped.moment_flops < plan.moment_flops and idle.solving_flops < plan.solving_flops
    assert plan.hours == pytest.approx((plan.forward_flops + plan.moment_flops + plan.solving_flops) / 3.6e12, abs=1e-3)


def test_dry_run_prints_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "packed"
    with pytest.raises(SystemExit) as ended:
        main(["init", "embedded", "--recipe", "uniform:2", "--calibrate", "--dry-run", "--out", str(out)])
    assert ended.value.code == 0
    assert "Calibration of 119 layers" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_without_calibration_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["init", "embedded", "--recipe", "uniform:2", "--dry-run", "--out", str(tmp_path / "packed")])
    assert "dry-run: got it without --calibrate" in capsys.readouterr().err


def test_dry_run_of_a_transformer(tmp_path, capsys):
    arguments = ["init", "embedded:flow", "--recipe", "uniform:2", "--calibrate", "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "packed")])
    assert ended.value.code == 0
    layers = len(model_layers(load_pipeline("embedded:flow").transformer))
    assert f"Calibration of {layers} layers" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_of_a_transformer_is_counted(name):
    model = build_transformer(name)
    plan = plan_calibration({**CONFIGS[name], "_class_name": name}, 8, SETTINGS, 1e9)
    layers = DENOISERS[name].modules(model)
    assert plan.layers == len(layers)
    assert plan.widest == max(layer.weight[0].numel() for layer in layers.values())
    assert plan.bytes["weights"] == 4 * sum(parameter.numel() for parameter in model.parameters())
