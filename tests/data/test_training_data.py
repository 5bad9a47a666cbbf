"""The drawn world as training data, and how images become latents."""

from __future__ import annotations

import torch

from bitsfusion.data.batches import encode_images
from bitsfusion.data.drawn import DrawnData
from bitsfusion.embedded.quick import QUICK


def test_latents_are_the_scaled_mean_of_the_posterior(vae):
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    latents = encode_images(vae, pixels)
    assert latents.shape == (3, 4, 8, 8) and not latents.requires_grad
    with torch.no_grad():
        assert torch.allclose(latents, vae.encode(pixels).latent_dist.mean * 0.5, atol=1e-6)


def test_the_world_is_a_pool_sampled_by_rank_and_step(vae, conditioner):
    data = DrawnData(vae, conditioner, seed=3, pool=40)
    one, again = data.batch(5, 0, 1, 16), DrawnData(vae, conditioner, seed=3, pool=40).batch(5, 0, 1, 16)
    assert one.latents.shape == (16, 4, 16, 16) and one.prompts["input_ids"].shape == (16, 12)
    assert torch.equal(one.latents, again.latents) and torch.equal(one.prompts["input_ids"], again.prompts["input_ids"])
    assert data.batch(5, 1, 2, 16).names != one.names != data.batch(6, 0, 1, 16).names
    train = {
        prompt.text for tag in ("single_object", "colors", "counting") for prompt in QUICK.all_prompts(tag, "train")
    }
    test = {prompt.text for tag in ("single_object", "colors", "counting") for prompt in QUICK.all_prompts(tag, "test")}
    assert set(one.names) & train and not set(one.names) & test
    assert data.fingerprint != DrawnData(vae, conditioner, seed=4, pool=4).fingerprint
