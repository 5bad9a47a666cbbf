"""Caching is lossless at the covered steps and refuses the others."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from bitsfusion.diffusion.samplers import Coverage, SamplerSteps
from bitsfusion.diffusion.time_features import cache_time_features, time_feature_rows, time_layers
from bitsfusion.diffusion.time_features.lookup import step_bits
from bitsfusion.errors import InputError

from ..tiny.unet import build_unet

STEPS = (981, 500, 1)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return build_unet()


def run(unet: UNet2DConditionModel, step: object, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, 4, 4, generator=generator)
    return unet(sample, step, torch.randn(batch, 5, 16, generator=generator)).sample


@pytest.mark.parametrize("step", STEPS)
def test_exact_with_float32_rows(unet: UNet2DConditionModel, step: int) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS, torch.float32)
    assert torch.equal(run(cached, step), run(unet, step))
    torch.testing.assert_close(run(cached, step, 3), run(unet, step, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"time_embedding_act_fn": "silu"}, {"resnet_time_scale_shift": "scale_shift"}])
def test_exact_for_other_kinds_of_unet(options: dict[str, object]) -> None:
    unet = build_unet(**options)
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS, torch.float32)
    assert torch.equal(run(cached, 500), run(unet, 500))


def test_float16_rows_are_within_their_rounding(unet: UNet2DConditionModel) -> None:
    exact, rows = time_feature_rows(unet, STEPS, torch.float32), time_feature_rows(unet, STEPS)
    assert rows.dtype == torch.float16
    assert bool(((rows.float() - exact).abs() <= exact.abs() * 2**-10 + 2**-24).all())
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS)
    expected = run(unet, 1)
    assert (run(cached, 1) - expected).norm() < expected.norm() * 2**-10


@pytest.mark.parametrize(
    "step",
    [
        981,
        981.0,
        torch.tensor(981),
        torch.tensor(981.0),
        torch.tensor([981, 981]),
        torch.tensor([981.0, 981.0], dtype=torch.float16),
    ],
    ids=["int", "float", "0-d", "0-d float", "batch", "batch half"],
)
def test_forms_of_a_time_step(unet: UNet2DConditionModel, step: object) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS)
    assert torch.equal(run(cached, step, 2), run(cached, 981, 2))


def test_each_sample_gets_its_own_step(unet: UNet2DConditionModel) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS, torch.float32)
    steps = torch.tensor([1, 981])
    torch.testing.assert_close(run(cached, steps, 2), run(unet, steps, 2), rtol=1e-5, atol=1e-6)


def test_layers_are_gone_and_the_table_is_small(unet: UNet2DConditionModel) -> None:
    cached = copy.deepcopy(unet)
    removed = time_layers(cached)
    assert removed[:2] == ["time_embedding.linear_1", "time_embedding.linear_2"] and len(removed) == 2 + 8
    cache_time_features(cached, STEPS)
    assert time_layers(cached) == []
    gone = {name for name in unet.state_dict() if name not in cached.state_dict()}
    assert gone == {f"{name}.{part}" for name in removed for part in ("weight", "bias")}
    assert cached.state_dict()["time_proj.rows"].shape == (
        3,
        sum(unet.get_submodule(n).out_features for n in removed[2:]),
    )


def test_uncovered_step_names_the_samplers(unet: UNet2DConditionModel) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, Coverage(STEPS, (SamplerSteps("pndm", 50), SamplerSteps("dpm", 20))))
    with pytest.raises(InputError, match="time step 980 is not cached: this model covers pndm 50 steps, dpm 20 steps"):
        run(cached, 980)
    with pytest.raises(InputError, match=r"time step 0\.5 is not cached.* --cover basis"):
        run(cached, torch.tensor([981, 0.5]), 2)


def test_a_step_that_bfloat16_cannot_tell_is_refused(unet: UNet2DConditionModel) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS)
    with pytest.raises(InputError, match="time step 980 is not cached"):
        run(cached, torch.tensor([981], dtype=torch.bfloat16))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_whole_and_still_refuses(unet: UNet2DConditionModel, backend: str) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS, torch.float32)
    compiled = torch.compile(cached, backend=backend, fullgraph=True)
    for step in (981, 1):
        assert torch.equal(run(compiled, torch.tensor(step)), run(cached, step))
    with pytest.raises(InputError, match="time step 980 is not cached: this model covers the steps 981, 500, 1"):
        run(compiled, torch.tensor(980))


def test_the_operator_is_a_good_one() -> None:
    rows, steps = torch.randn(3, 5), step_bits(torch.tensor(STEPS))
    torch.library.opcheck(torch.ops.bitsfusion.time_rows, (rows, steps, torch.tensor([1, 981]), "the steps"))


def test_uncovered_step_lists_bare_steps(unet: UNet2DConditionModel) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS)
    with pytest.raises(InputError, match="covers the steps 981, 500, 1;"):
        run(cached, 2)


def test_refuses_features_that_depend_on_more(unet: UNet2DConditionModel) -> None:
    with pytest.raises(InputError, match="class_embed_type"):
        cache_time_features(build_unet(class_embed_type="timestep"), STEPS)


def test_refuses_a_second_time(unet: UNet2DConditionModel) -> None:
    cached = copy.deepcopy(unet)
    cache_time_features(cached, STEPS)
    with pytest.raises(InputError, match="not cached before"):
        cache_time_features(cached, STEPS)
