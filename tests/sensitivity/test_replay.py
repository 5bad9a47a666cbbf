"""Activations kept from before a layer: the same numbers as without, and less work."""

from __future__ import annotations

import pytest
import torch

from bitsfusion.architectures.conditioning import Conditioning
from bitsfusion.architectures.registry import layers_to_assign
from bitsfusion.diffusion.samples import NoisySamples
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.sensitivity.noise import guided_latents, noisy_latents
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.replay import Replay
from bitsfusion.sensitivity.settings import NoiseErrorSettings

from ..tiny.pipeline import build_one_block_pipeline
from .random_data import RandomData


@pytest.fixture(scope="module")
def unet():
    return load_pipeline("embedded").unet


def question(unet, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = unet.config.sample_size
    return NoisySamples(
        torch.randn(2, unet.config.in_channels, size, size, generator=generator),
        torch.tensor([10, 900]),
        Conditioning(
            {"encoder_hidden_states": torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)}
        ),
    )


@torch.no_grad()
def test_every_layer_gives_the_same_output_bit_for_bit(unet):
    """Each layer's weight is changed; the replayed forward sees the change exactly as a whole forward does."""
    replay, asked = Replay(unet), question(unet)
    before, recording = replay.record(lambda: asked.predict(unet))
    for name in layers_to_assign(unet):
        weight = unet.get_submodule(name).weight
        own = weight.data
        weight.data = own * 1.25
        whole = asked.predict(unet)
        with replay.replaying(recording, name):
            replayed = asked.predict(unet)
        weight.data = own
        assert torch.equal(replayed, whole), name
        assert not torch.equal(whole, before), name
    assert torch.equal(asked.predict(unet), before)  # nothing is left replaced


@torch.no_grad()
def test_what_comes_before_does_not_run(unet):
    replay, asked = Replay(unet), question(unet)
    _, recording = replay.record(lambda: asked.predict(unet))
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in unet.named_modules()
        if name in layers_to_assign(unet)
    ]
    last_block = len(unet.up_blocks) - 1
    name = f"up_blocks.{last_block}.resnets.1.conv2"
    with replay.replaying(recording, name):
        asked.predict(unet)
    for hook in hooks:
        hook.remove()
    assert name in ran
    assert all(layer.startswith(f"up_blocks.{last_block}.") for layer in ran)
    assert not any(".resnets.0." in layer or ".attentions.0." in layer for layer in ran)


def test_an_error_inside_leaves_the_unet_as_it_was(unet):
    replay, asked = Replay(unet), question(unet)
    _, recording = replay.record(lambda: asked.predict(unet))
    with pytest.raises(RuntimeError, match="stop"), replay.replaying(recording, "conv_out"):
        raise RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"), replay.replaying(recording, "up_blocks.0.resnets.0.conv1"):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in unet.modules())


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_noise_error_is_the_same_with_and_without(guidance):
    pipeline = build_one_block_pipeline()
    settings = NoiseErrorSettings(samples=6, batch_size=4, guidance=guidance)
    reusing = NoiseError(pipeline, settings, RandomData())
    plain = NoiseError(pipeline, settings.model_copy(update={"reuse_activations": False}), RandomData())
    for name in layers_to_assign(pipeline.unet):
        assert reusing.measure(name, 2) == plain.measure(name, 2), name


@torch.no_grad()
def test_guidance_combines_two_predictions():
    pipeline = build_one_block_pipeline()
    inputs = noisy_latents(pipeline, RandomData(), 0, 3, 0, spread=True)
    null = pipeline.text_encoder(pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids)[0]
    nothing = Conditioning({"encoder_hidden_states": null.expand(3, -1, -1)})
    uncond = NoisySamples(inputs.noisy, inputs.timesteps, nothing).predict(pipeline.unet)
    cond = inputs.predict(pipeline.unet)
    guided = guided_latents(pipeline, inputs, 7.5)
    torch.testing.assert_close(guided.predict(pipeline.unet), 7.5 * cond - 6.5 * uncond, atol=1e-5, rtol=1e-4)
    assert guided.forwards == 6
    plain = guided_latents(pipeline, inputs, 1.0)
    assert torch.equal(plain.predict(pipeline.unet), cond) and plain.forwards == 3
