"""A basis holds every step, fractions included, within the tolerance; random features have none."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from bitsfusion.diffusion.time_features import (
    BASIS,
    TimeBasis,
    TimeFeatureBasis,
    cache_time_features,
    choose_features,
    fit_time_basis,
    time_layers,
)
from bitsfusion.diffusion.time_features.fit import TOLERANCE, layer_values
from bitsfusion.diffusion.time_features.layers import time_outputs
from bitsfusion.diffusion.time_features.lookup import step_bits, time_rows
from bitsfusion.diffusion.time_features.spline import Knots, fit_spline, spline_values, spline_weights
from bitsfusion.errors import InputError
from bitsfusion.pipelines.load import load_pipeline

from ..tiny.unet import build_smooth_unet, build_unet

WHOLE = torch.arange(1000.0)


@pytest.fixture(scope="module")
def trained() -> UNet2DConditionModel:
    return load_pipeline("embedded").unet


@pytest.fixture(scope="module")
def basis(trained: UNet2DConditionModel) -> TimeBasis:
    fitted = fit_time_basis(trained)
    assert fitted is not None
    return fitted


@pytest.fixture(scope="module")
def smooth() -> UNet2DConditionModel:
    return build_smooth_unet()


def exact(unet: UNet2DConditionModel, steps: torch.Tensor) -> torch.Tensor:
    return torch.cat([part for _, part in time_outputs(unet, steps)], dim=1).double()


def relative_error(unet: UNet2DConditionModel, basis: TimeBasis, steps: torch.Tensor) -> float:
    every = exact(unet, WHOLE)
    power = (every - every.mean(0)).square().sum(1).mean()
    made = TimeFeatureBasis(basis).float()(steps).double()
    return float(((made - exact(unet, steps)).square().sum(1).mean() / power).sqrt())


def test_a_spline_gives_cubics_back() -> None:
    knots = Knots(-3, 5, 7)
    times = torch.linspace(knots.start, knots.end, 200, dtype=torch.float64)
    cubic = torch.stack((times**3 / 1e3 - times, torch.ones_like(times)), dim=1)
    curve = fit_spline(cubic, times, knots)
    assert curve.shape == (knots.points, 2) == (10, 2)
    torch.testing.assert_close(spline_values(curve, times, knots), cubic, rtol=0, atol=1e-9)


def test_weights_add_up_to_one_and_pieces_join() -> None:
    knots = Knots(0, 4, 5)
    times = torch.rand(100, dtype=torch.float64) * knots.end
    torch.testing.assert_close(spline_weights(times, knots)[1].sum(1), torch.ones(100, dtype=torch.float64))
    curve = torch.randn(knots.points, 1, dtype=torch.float64)
    joints = torch.arange(4, 20, 4, dtype=torch.float64)
    before, after = (spline_values(curve, joints + offset, knots) for offset in (-1e-9, 1e-9))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-7)


def test_the_rank_is_the_least_within_the_tolerance(trained: UNet2DConditionModel, basis: TimeBasis) -> None:
    every = exact(trained, WHOLE)
    energy = torch.linalg.svdvals(every - every.mean(0)).square()
    left = (energy.flip(0).cumsum(0).flip(0) / energy.sum()).sqrt()
    assert left[basis.rank - 1] > TOLERANCE >= left[basis.rank]
    assert basis.error <= TOLERANCE and relative_error(trained, basis, WHOLE) == pytest.approx(basis.error, rel=1e-3)
    assert {tensor.dtype for tensor in basis.tensors().values()} == {torch.float16}


def test_steps_with_fractions_are_as_good(trained: UNet2DConditionModel, basis: TimeBasis) -> None:
    anywhere = torch.rand(1000, generator=torch.Generator().manual_seed(3)) * 999
    assert relative_error(trained, basis, anywhere) <= TOLERANCE
    assert relative_error(trained, basis, WHOLE[:-1] + 0.5) <= TOLERANCE
    beyond = torch.tensor([-1.5537, 999.5, 1000.0])  # log(sigma) / 4 in EDM's way, and an offset of one step
    assert relative_error(trained, basis, beyond) <= 4 * TOLERANCE


def test_it_takes_less_than_the_rows_of_50_steps(basis: TimeBasis) -> None:
    assert basis.values <= 50 * basis.channels == 41_600
    assert basis.values == sum(tensor.numel() for tensor in basis.tensors().values())


def test_stable_diffusions_shape_at_rank_16_takes_a_megabyte_at_most(basis: TimeBasis) -> None:
    shapes = ((20_160,), (16, 20_160), (basis.knots.points, 16))
    made = TimeBasis(*(torch.zeros(shape, dtype=torch.float16) for shape in shapes), basis.knots, 0.0)
    assert 2 * made.values <= 1_000_000


def test_a_tighter_tolerance_takes_a_higher_rank(smooth: UNet2DConditionModel) -> None:
    wide, tight = (fit_time_basis(smooth, tolerance=tolerance) for tolerance in (0.02, 0.002))
    assert wide is not None and tight is not None
    assert wide.rank < tight.rank and tight.error <= 0.002 < wide.error <= 0.02


def test_a_shorter_schedule_has_its_own_ends(smooth: UNet2DConditionModel) -> None:
    made = fit_time_basis(smooth, steps=100)
    assert made is not None and made.knots.start == -2 and 100 <= made.knots.end < 132


def test_random_features_are_left_to_the_layers() -> None:
    choice = choose_features(build_unet(), BASIS, {"num_train_timesteps": 1000})
    assert choice.features is None and choice.note is not None and "not smooth" in choice.note
    assert choice.values == layer_values(build_unet()) > 0


def test_features_that_depend_on_more_are_left_to_the_layers() -> None:
    choice = choose_features(build_unet(class_embed_type="timestep"), BASIS, {})
    assert choice.features is None and "class_embed_type" in str(choice.note)


def test_what_is_placed_already_is_taken(smooth: UNet2DConditionModel) -> None:
    cached, basis = copy.deepcopy(smooth), fit_time_basis(smooth)
    assert basis is not None
    cache_time_features(cached, basis, torch.float32)
    again = choose_features(cached, BASIS, {}).features
    assert isinstance(again, TimeBasis)
    for name, tensor in again.tensors().items():
        assert torch.equal(tensor, basis.tensors()[name])


@pytest.mark.parametrize(("steps", "tolerance"), [(1, 0.1), (1000, 0.0), (1000, float("nan"))])
def test_arguments_out_of_range(smooth: UNet2DConditionModel, steps: int, tolerance: float) -> None:
    with pytest.raises(InputError, match="wanted 2 or more, and above 0"):
        fit_time_basis(smooth, steps, tolerance)


def run(unet: Any, step: object, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, 4, 4, generator=generator)
    made: torch.Tensor = unet(sample, step, torch.randn(batch, 5, 16, generator=generator)).sample
    return made


@pytest.fixture(scope="module")
def cached(smooth: UNet2DConditionModel) -> UNet2DConditionModel:
    made, basis = copy.deepcopy(smooth), fit_time_basis(smooth)
    assert basis is not None
    cache_time_features(made, basis)
    return made


@pytest.mark.parametrize("step", [0, 999, 500.25, torch.tensor(17.5), torch.tensor([3, 980]), -1.5])
def test_the_output_is_near_that_of_the_layers(
    smooth: UNet2DConditionModel, cached: UNet2DConditionModel, step: object
) -> None:
    assert time_layers(cached) == []
    expected = run(smooth, step, 2)
    assert (run(cached, step, 2) - expected).norm() < 0.02 * expected.norm()


def test_compiles_whole(cached: UNet2DConditionModel) -> None:
    compiled = torch.compile(cached.time_proj, backend="aot_eager", fullgraph=True)
    steps = torch.tensor([981, 0])
    torch.testing.assert_close(compiled(steps), cached.time_proj(steps))
    assert bool(compiled(torch.tensor([2000, 2000])).isnan().all())  # no wrong numbers


@pytest.mark.slow
def test_a_unet_compiles_whole(cached: UNet2DConditionModel) -> None:
    compiled = torch.compile(cached, backend="aot_eager", fullgraph=True)
    for step in (981, 0):
        torch.testing.assert_close(run(compiled, torch.tensor(step)), run(cached, step))


@pytest.mark.parametrize("step", [-3, 2000.5, float("nan")])
def test_a_step_beyond_the_ends_is_refused(cached: UNet2DConditionModel, step: float) -> None:
    with pytest.raises(InputError, match=r"this model covers every step from -2 to \d+; .*--cover any"):
        run(cached, torch.tensor(step))


class Reads(TorchDispatchMode):
    """Counts how often the host reads a value: on an accelerator, how often it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return self.count["_local_scalar_dense"]


@pytest.mark.parametrize("kind", ["basis", "rows"])
def test_values_are_looked_at_once_for_a_schedule(cached: UNet2DConditionModel, kind: str) -> None:
    schedule = torch.arange(981, 0, -20)
    steps, rows = step_bits(schedule.clone()), torch.randn(len(schedule), 5)

    def features(asked: torch.Tensor) -> torch.Tensor:
        return cached.time_proj(asked) if kind == "basis" else time_rows(rows, steps, asked, "those")

    with Reads() as reads, torch.no_grad():
        for step in schedule:
            features(step[None].expand(2))
    assert reads.waits == 1
    with Reads() as reads:
        features(torch.tensor([981]))
    assert reads.waits == 1  # another schedule
    schedule[3] = 5000
    with pytest.raises(InputError, match="time step 5000"):
        features(schedule[3:4])
