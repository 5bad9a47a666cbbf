"""What `init` writes by itself draws with every scheduler at any number of steps, and trains at any step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers

from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.diffusion.samplers import build_scheduler
from bitsfusion.diffusion.time_features import TimeFeatureBasis, cache_time_features
from bitsfusion.embedded.quick import QUICK
from bitsfusion.errors import InputError
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import EMBEDDED, load_pipeline
from bitsfusion.runs.packing import init_pipeline

from ..tiny.pipeline import build_pipeline
from ..tiny.unet import build_smooth_unet
from ..tiny.vae import build_vae
from .drawing import images, load

SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SCHEDULERS = [scheduler.name for scheduler in KarrasDiffusionSchedulers]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("any_step") / "dense"
    unet = build_smooth_unet(
        block_out_channels=(32,),
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
    )
    build_pipeline(unet, build_vae(scaling_factor=1.0)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def default_folder(dense: Path) -> Path:
    path = dense.with_name("packed")
    init_pipeline(str(dense), path, recipe="uniform:4")
    return path


@pytest.fixture(scope="module")
def kept_folder(dense: Path) -> Path:
    path = dense.with_name("kept")
    init_pipeline(str(dense), path, recipe="uniform:4", samplers=None)
    return path


@pytest.fixture(scope="module")
def pipelines(default_folder: Path, kept_folder: Path) -> tuple[Any, Any]:
    return load(default_folder), load(kept_folder)


def test_the_default_is_a_basis(default_folder: Path) -> None:
    verify_folder(default_folder)
    seen = inspect_folder(default_folder)
    features = seen.time_features
    assert features["kind"] == "basis" and 0 < features["error"] <= 0.005 and features["rank"] >= 1
    assert seen.bytes_on_disk.time_features == 2 * features["values"] > 0
    assert seen.fallbacks == {}


def scheduler_of(kind: str, config: Any) -> Any:
    try:
        return getattr(diffusers, kind).from_config(config)
    except ImportError:
        pytest.skip(f"{kind} needs a package that is not there")


@pytest.mark.parametrize("steps", [1, 4, 20, 30, 50])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_scheduler_at_any_number_of_steps(pipelines: tuple[Any, Any], kind: str, steps: int) -> None:
    """At 20 steps beside the same model with its time layers kept at 8 bits."""
    made = []
    for pipeline in pipelines if steps == 20 else pipelines[:1]:
        pipeline.scheduler = scheduler_of(kind, pipeline.scheduler.config)
        made.append(images(pipeline, steps, guidance_scale=1.0))
    assert np.isfinite(made[0]).all()
    assert np.abs(made[0] - made[-1]).mean() < 0.02


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_fractions_of_steps(pipelines: tuple[Any, Any], spacing: str, sigmas: str) -> None:
    pytest.importorskip("scipy")
    pipeline = pipelines[0]
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing=spacing, **{name: name == sigmas for name in SIGMAS}
    )
    assert np.isfinite(images(pipeline, 7)).all()
    assert any(not step.is_integer() for step in pipeline.scheduler.timesteps.tolist())


@pytest.mark.parametrize("strength", [0.2, 0.75, 1.0])
def test_image_to_image(default_folder: Path, strength: float) -> None:
    pipeline = load(default_folder, StableDiffusionImg2ImgPipeline)
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    made = pipeline(
        "a red cross",
        picture,
        strength=strength,
        num_inference_steps=13,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images
    assert np.isfinite(made).all()


def test_an_adapter_trains_at_random_steps_and_draws(default_folder: Path) -> None:
    peft = pytest.importorskip("peft")
    pipeline = load(default_folder)
    unet = pipeline.unet
    before = images(pipeline, 6)
    unet.requires_grad_(False)
    unet.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=10.0)
    generator = torch.Generator().manual_seed(0)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    for _ in range(3):
        clean, noise = torch.randn(2, 4, 4, 4, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)
        steps = torch.randint(0, 1000, (2,), generator=generator)
        noisy = noise_scheduler.add_noise(clean, noise, steps)
        predicted = unet(noisy, steps, torch.randn(2, 77, 32, generator=generator)).sample
        optimizer.zero_grad()
        (predicted - noise).square().mean().backward()
        optimizer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in trained)
    assert not np.array_equal(images(pipeline, 6), before)
    unet.delete_adapters("default")
    assert np.array_equal(images(pipeline, 6), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_and_saved_again(default_folder: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    pipeline = load(default_folder, dtype=dtype)
    assert pipeline.unet.time_proj(torch.tensor([7.5])).dtype == dtype
    assert np.isfinite(images(pipeline, 3)).all()
    pipeline.save_pretrained(tmp_path)
    verify_folder(tmp_path)
    weights = "unet/diffusion_pytorch_model.safetensors"
    one, other = (StableDiffusionPipeline.from_pretrained(folder).unet for folder in (default_folder, tmp_path))
    assert (default_folder / weights).is_file()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_dense_copy_keeps_the_basis_and_is_not_saved(default_folder: Path, tmp_path: Path) -> None:
    pipeline = load(default_folder)
    drawn = images(pipeline, 5)
    pipeline.unet.dequantize()
    assert isinstance(pipeline.unet.time_proj, TimeFeatureBasis)
    np.testing.assert_allclose(images(pipeline, 5), drawn, atol=1e-5)
    with pytest.raises(InputError, match=r"every step from -2 to \d+, wanted .*--cover any"):
        pipeline.unet.save_pretrained(tmp_path)


def test_own_scheduler_with_zero_terminal_snr_and_velocities(dense: Path, tmp_path: Path) -> None:
    original = StableDiffusionPipeline.from_pretrained(dense)
    original.scheduler = DDIMScheduler.from_config(
        original.scheduler.config,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    original.save_pretrained(tmp_path / "dense")
    init_pipeline(str(tmp_path / "dense"), tmp_path / "packed", recipe="uniform:8")
    drawn = []
    for folder in ("dense", "packed"):
        pipeline = load_pipeline(str(tmp_path / folder))
        own, ddim, euler = (
            generate_images(pipeline, ["a red cross"], [3], steps=6, guidance=1.0, sampler=sampler)
            for sampler in ("own", "ddim", "euler")
        )
        assert np.array_equal(own, ddim)
        assert build_scheduler("euler", pipeline.scheduler.config).config.rescale_betas_zero_snr
        assert np.isfinite(euler).all()
        drawn.append(own.astype(int))
    assert np.abs(drawn[0] - drawn[1]).mean() < 8


@pytest.mark.slow
def test_pictures_of_the_embedded_model_are_those_of_its_time_layers(tmp_path: Path) -> None:
    """Sixty pictures, 8 of 255 at most: the same UNet, its time layers replaced by the basis of the default folder."""
    init_pipeline(EMBEDDED, tmp_path / "packed", recipe="uniform:2")
    chosen = world_prompts(QUICK, "validation", 10, 0)
    pipeline, packed = load_pipeline(EMBEDDED), load_pipeline(str(tmp_path / "packed"))
    options: dict[str, Any] = {"steps": 50, "batch_size": 60}
    layers = generate_images(pipeline, chosen.texts, chosen.seeds, **options)
    cache_time_features(pipeline.unet, packed.unet.time_proj.stored, torch.float32)
    basis = generate_images(pipeline, chosen.texts, chosen.seeds, **options)
    assert len(layers) == 60
    assert np.abs(layers.astype(int) - basis.astype(int)).max() <= 8
