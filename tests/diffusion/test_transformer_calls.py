"""A transformer is called as its own pipeline calls it: the pipeline's calls are recorded and compared bit for bit."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import (
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    QwenImageEditPipeline,
    SanaSprintPipeline,
    SCMScheduler,
)

from bitsfusion.architectures.transformer_calls import from_patches
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.diffusion.denoise import denoise
from bitsfusion.errors import InputError
from bitsfusion.pipelines.generation import call_options
from bitsfusion.pipelines.load import check_draws_from_text

from ..tiny.transformers import CONFIGS, build_transformer_pipeline

SIDE = 8
"""Of the latents, but for FLUX.2's, whose channels hold patches."""
CAPTIONS = ["red circle", "blue square"]


class Recorder:
    """The arguments of a model's last call, by the names of its forward."""

    def __init__(self, model) -> None:
        self.signature = inspect.signature(type(model).forward)
        self.model, self.calls = model, []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model, args, kwargs) -> None:
        bound = self.signature.bind(model, *args, **kwargs)
        self.calls.append({name: value for name, value in bound.arguments.items() if name != "self"})


def flat(value) -> list:
    """Tensors and numbers of nested lists, in order; None and what is empty left out."""
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in flat(value[key])]
    if isinstance(value, list | tuple):
        return [part for each in value for part in flat(each)]
    return [] if value is None else [value]


def as_image(latents, name):
    if name in ("FluxTransformer2DModel", "QwenImageTransformer2DModel"):
        return from_patches(latents, SIDE // 2, SIDE // 2)
    if name == "Flux2Transformer2DModel":
        return latents.transpose(1, 2).reshape(len(latents), -1, SIDE // 2, SIDE // 2)
    if name == "ZImageTransformer2DModel":
        return torch.stack(latents).squeeze(2)
    return latents


def test_a_guidance_distilled_teacher_is_told_its_pipelines_guidance(monkeypatch):
    name = "FluxTransformer2DModel"
    monkeypatch.setitem(CONFIGS, name, {**CONFIGS[name], "guidance_embeds": True})
    test_a_transformer_gets_what_its_pipeline_gives_it(name)
    conditioner = conditioner_of(build_transformer_pipeline(name))
    rows = conditioner.rows(CAPTIONS)
    default = inspect.signature(FluxPipeline.__call__).parameters["guidance_scale"].default
    for conditioning in (conditioner.encode(rows, (8, 8)), conditioner.null(2, (8, 8))):
        assert conditioning.tensors["guidance"].tolist() == [default, default]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_transformer_gets_what_its_pipeline_gives_it(name):
    pipeline = build_transformer_pipeline(name)
    recorder = Recorder(pipeline.transformer)
    options = {"guidance_scale": 1.0, "max_sequence_length": conditioner_of(pipeline).tokens}
    if name == "FluxTransformer2DModel":
        del options["guidance_scale"]
    if name == "QwenImageTransformer2DModel":
        options |= {"true_cfg_scale": 1.0, "guidance_scale": None}
    if name == "ZImageTransformer2DModel":
        options["guidance_scale"] = 0.0
    if name in ("PixArtTransformer2DModel", "SanaTransformer2DModel"):
        options["use_resolution_binning"] = False
    side = (2 * SIDE if name == "SanaTransformer2DModel" else SIDE) * pipeline.vae_scale_factor
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        pipeline(
            prompt=list(CAPTIONS),
            height=side,
            width=side,
            num_inference_steps=1,
            generator=generator,
            output_type="latent",
            **options,
        )
    theirs = recorder.calls[-1]
    noisy = as_image(theirs.get("hidden_states", theirs.get("x")), name)
    conditioner = conditioner_of(pipeline)
    conditioning = conditioner.encode(conditioner.rows(CAPTIONS), noisy.shape[-2:])
    time = pipeline.scheduler.timesteps[:1].expand(len(noisy))
    with torch.no_grad():
        predicted = denoise(pipeline.transformer, noisy, time, conditioning)
    ours = recorder.calls[-1]
    assert ours is not theirs and predicted.shape == noisy.shape
    ignored = {"return_dict"}
    for key in (ours.keys() | theirs.keys()) - ignored:
        found, wanted = flat(ours.get(key)), flat(theirs.get(key))
        assert len(found) == len(wanted), key
        for mine, other in zip(found, wanted, strict=True):
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(other)), key


def test_what_a_transformer_is_given_beside_texts_is_not_trained():
    flux = build_transformer_pipeline("FluxTransformer2DModel", in_channels=48, out_channels=16).components
    flux = {key: part for key, part in flux.items() if key not in ("image_encoder", "feature_extractor")}
    qwen = build_transformer_pipeline("QwenImageTransformer2DModel")
    sana = build_transformer_pipeline("SanaTransformer2DModel", guidance_embeds=True).components
    fill = FluxFillPipeline(**flux)
    edit = QwenImageEditPipeline(**qwen.components, processor=qwen.tokenizer)
    sprint = SanaSprintPipeline(**sana | {"scheduler": SCMScheduler()})
    wide = {"attention_head_dim": 12, "cross_attention_dim": 24, "use_additional_conditions": True}
    sized = build_transformer_pipeline("PixArtTransformer2DModel", **wide)
    refused = {
        fill: "32 channels of pictures",
        edit: "pictures",
        sprint: "the time in radians",
        sized: "the picture's resolution",
    }
    for pipeline, given in refused.items():
        with pytest.raises(InputError, match=f"got a {type(pipeline).__name__}, whose transformer is given {given}"):
            conditioner_of(pipeline)
    for pipeline, also in ((fill, " and a mask"), (edit, "")):
        with pytest.raises(InputError, match=f"draws from a picture{also} beside the prompt"):
            check_draws_from_text(pipeline)
    check_draws_from_text(sprint)


def test_a_pipeline_that_sizes_pictures_by_their_area_is_told_the_area():
    pipeline = FluxKontextPipeline(**build_transformer_pipeline("FluxTransformer2DModel").components)
    check_draws_from_text(pipeline)
    options = call_options(pipeline, [0], 1, 1.0, size=32)
    assert options["height"] == options["width"] == 32 and options["max_area"] == 32 * 32


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_sana_sprint_draws_in_any_number_of_steps(steps):
    parts = build_transformer_pipeline("SanaTransformer2DModel", guidance_embeds=True).components
    pipeline = SanaSprintPipeline(**parts | {"scheduler": SCMScheduler()})
    pipeline.set_progress_bar_config(disable=True)
    options = {"use_resolution_binning": False, **call_options(pipeline, [0], steps, 4.5, size=32)}
    assert len(pipeline(["red circle"], num_inference_steps=steps, output_type="np", **options).images) == 1
