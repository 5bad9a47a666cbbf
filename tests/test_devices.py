"""Names of devices, and models that go there and back; on an accelerator: tests/fake_accelerator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitsfusion.devices import AUTO, device_of, placed, resolve
from bitsfusion.errors import InputError
from bitsfusion.runs.config import RunConfig
from bitsfusion.training.config import TrainingConfig

ON_CPU = not torch.accelerator.is_available()


def test_the_cpu_by_its_name():
    assert resolve("cpu") == torch.device("cpu")


@pytest.mark.skipif(not ON_CPU, reason="an accelerator is here")
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert resolve(AUTO) == resolve() == torch.device("cpu")


@pytest.mark.skipif(ON_CPU, reason="no accelerator is here")
def test_auto_is_the_accelerator_unless_the_launch_is_for_the_cpu(monkeypatch):
    assert resolve(AUTO).type == torch.accelerator.current_accelerator().type
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resolve(AUTO) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "", "tpu:0", "meta", "cuda:99", "privateuseone"])
def test_a_device_that_is_not_here_is_one_line(name):
    with pytest.raises(InputError, match=f"device: got '{name}'.*wanted") as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_where_a_model_is():
    assert device_of(nn.Linear(2, 2)) == torch.device("cpu")
    assert device_of(nn.Identity()) is None
    assert device_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))) is None


def test_a_model_in_parts_or_without_weights_is_left_where_it_is():
    parts = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    unmade = nn.Linear(2, 2, device="meta")
    with placed([None, parts, unmade], torch.device("cpu")):
        assert parts[1].weight.is_meta and unmade.weight.is_meta


def test_a_run_has_one_device():
    config = RunConfig.model_validate({"device": "cpu", "stage1": {"stage": 1, "device": "cpu"}})
    assert config.stage1.device == "cpu"
    with pytest.raises(ValueError, match=r"stage1\.device: got cuda, wanted cpu"):
        RunConfig.model_validate({"device": "cpu", "stage1": {"stage": 1, "device": "cuda"}})


def test_the_device_does_not_decide_what_is_trained():
    assert TrainingConfig(device="cpu").deciding() == TrainingConfig(device="cuda").deciding()
