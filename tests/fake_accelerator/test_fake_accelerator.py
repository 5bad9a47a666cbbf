"""Everything that computes, on a device that refuses tensors left on the CPU."""

from __future__ import annotations

import pytest

from ..tiny.transformers import CONFIGS


def test_the_device_is_strict(on_accelerator):
    """Otherwise the rest of this file would show nothing."""
    assert on_accelerator("strictness") == {"mixed": True, "convolution": True, "counted": [1, 1]}


def test_models_go_there_and_back(on_accelerator):
    before, inside, after = on_accelerator("placement")
    assert sorted(before) == ["cpu", "cpu", "fakegpu:0"]
    assert set(inside) == {"fakegpu:0"}
    assert after == before


def test_a_short_run(on_accelerator):
    assert on_accelerator("demo") == ["full_precision", "init", "stage1", "stage2", "control"]


def test_a_table_of_the_laboratory(on_accelerator):
    assert on_accelerator("reproduction") == ["full precision", "ours"]


@pytest.mark.parametrize(
    ("program", "tolerance"),
    [
        ("train_plain", 1e-3),
        ("train_checkpointing_with_average", 1e-3),
        ("train_bfloat16", 0.1),
        ("train_stage_two", 1e-3),
        ("train_with_validation", 1e-3),
    ],
)
def test_training(on_accelerator, program, tolerance):
    there, here = on_accelerator(program)
    assert there == pytest.approx(here, rel=tolerance)


def test_training_of_transformers(on_accelerator):
    losses = on_accelerator("train_transformers")
    assert losses.keys() == CONFIGS.keys()
    for name, (there, here) in losses.items():
        assert there == pytest.approx(here, rel=1e-3), name


def test_a_run_goes_on_on_another_device(on_accelerator):
    assert on_accelerator("resume_on_another_device") == [-1, 3]


def test_a_training_step_waits_for_the_device_twice_at_most(on_accelerator):
    assert max(on_accelerator("syncs_of_a_step")) <= 2


@pytest.mark.parametrize(
    ("program", "rounding"), [("analyze_noise_error", 0), ("analyze_jacobian", 0), ("analyze_paper", 1e-6)]
)
def test_analysis(on_accelerator, program, rounding):
    """The paper's compares images of 8 bits, in which little steps are whole ones."""
    there, here = on_accelerator(program)
    assert there == pytest.approx(here, rel=1e-3, abs=rounding)


@pytest.mark.parametrize("program", ["weight_error", "curve"])
def test_measurements(on_accelerator, program):
    there, here = on_accelerator(program)
    assert there == pytest.approx(here, rel=1e-3)


def test_evaluation(on_accelerator):
    assert on_accelerator("evaluation") == ["clip", "mse", "geneval"]


def test_a_packed_model_draws_the_same(on_accelerator):
    assert on_accelerator("generate") <= 1


def test_a_sampler_step_of_a_packed_model_waits_for_nothing(on_accelerator):
    """Once a schedule's steps are known to be covered."""
    assert on_accelerator("syncs_of_a_sampler_step") == {"to_host": 0, "to_device": 0}


def test_a_pipeline_waits_no_oftener_for_a_packed_model(on_accelerator):
    """What diffusers' own loop and scheduler wait for is theirs. The first step, which looks the schedule up, aside."""
    packed, dense = on_accelerator("syncs_of_a_whole_step")
    assert packed == dense and len(packed) == 3


def test_calibration(on_accelerator):
    there, here = on_accelerator("calibrate")
    assert len(here) > 10 and there == pytest.approx(here, rel=0.02)


def test_a_packed_transformer_draws_the_same(on_accelerator):
    assert on_accelerator("transformer") < 1e-3


def test_rounding(on_accelerator):
    assert on_accelerator("rounding") == [True, True, True]
