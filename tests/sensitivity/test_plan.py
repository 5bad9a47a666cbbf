"""The cost of a measurement against what it then takes."""

from __future__ import annotations

import pytest

from bitsfusion.sensitivity.measure import analyze, candidates, empty_table, rows_done
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.paper import PaperMethod
from bitsfusion.sensitivity.plan import Plan, plan
from bitsfusion.sensitivity.settings import JacobianSettings, NoiseErrorSettings, PaperSettings

from ..tiny.text import PROMPTS
from .random_data import RandomData

NAMES = {"model": "tiny", "source_sha256": "f" * 64}


def counted(pipeline, work):
    """Latents that `work` sends through the UNet."""
    seen = []
    hook = pipeline.unet.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    try:
        work()
    finally:
        hook.remove()
    return sum(seen)


def planned(pipeline, settings, done=0):
    table = empty_table(pipeline, settings, RandomData(), **NAMES)
    return plan(pipeline, settings, RandomData(), candidates(table), done)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_forwards_of_the_papers_method_are_those_that_run(pipeline, guidance):
    settings = PaperSettings(
        prompts=PROMPTS[:3], iterations=2, train_batch_size=4, steps=5, image_batch_size=2, guidance=guidance
    )
    got = planned(pipeline, settings)
    method = PaperMethod(pipeline, settings, RandomData())
    name = next(iter(got.timed_layers))
    ran = counted(pipeline, lambda: method.measure(name, 2))
    assert got.forwards + got.training_samples == ran
    assert got.training_samples == 8


def test_forwards_of_the_noise_error(pipeline):
    settings = NoiseErrorSettings(samples=6, batch_size=4, guidance=2.0)
    got = planned(pipeline, settings)
    method = NoiseError(pipeline, settings, RandomData())
    assert got.forwards == counted(pipeline, lambda: method.measure(got.timed_layers[0], 2)) == 12
    assert got.training_samples == 0 and "6 noisy latents" not in got.assumption  # of the batch's size: 4


def test_the_estimate_is_of_the_right_size(pipeline, tmp_path):
    """Within a factor of three on a busy machine; a factor of ten would be another unit or a batch counted twice."""
    settings = NoiseErrorSettings(samples=64, batch_size=64)
    expected = planned(pipeline, settings).candidate_seconds
    table = analyze(pipeline, settings, tmp_path / "s.json", RandomData(), **NAMES)
    took = sorted(row.seconds for row in table.rows)[len(table.rows) // 2]
    assert took / 3 < expected < took * 3


def test_all_at_once(pipeline):
    got = planned(pipeline, JacobianSettings(samples=10, batch_size=5))
    assert got.training_samples * got.candidates == pytest.approx(20)  # ten guided pairs
    assert got.candidate_seconds > 0


def test_what_is_done_is_not_counted(pipeline, tmp_path):
    settings = NoiseErrorSettings(samples=2)
    table = empty_table(pipeline, settings, RandomData(), **NAMES)
    out = tmp_path / "s.json"
    assert rows_done(out, table) == 0

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 7:
            raise Stop

    with pytest.raises(Stop):
        analyze(pipeline, settings, out, RandomData(), **NAMES, progress=stop)
    assert rows_done(out, table) == 7
    other = empty_table(pipeline, settings, RandomData("others"), **NAMES)
    assert rows_done(out, other) == 0
    analyze(pipeline, settings, out, RandomData(), **NAMES)
    assert rows_done(out, table) == len(candidates(table))


def test_hours():
    cost = Plan("paper", 768, 8, 5000.0, 3200.0, 60.0, 36.0, "", ())
    assert cost.left == 760
    assert cost.hours() == pytest.approx((60 + 760 * 36) / 3600)
    assert cost.hours(8) == pytest.approx((60 + 95 * 36) / 3600)
    assert Plan("paper", 768, 768, 5000.0, 3200.0, 60.0, 36.0, "", ()).hours() == 0
