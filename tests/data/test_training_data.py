"""Training data: a folder of captioned images, and the drawn world."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTokenizer

from bitsfusion.data.batches import encode_images
from bitsfusion.data.captioned import CaptionedData, load_pixels, read_image_folder
from bitsfusion.data.world.captions import all_prompts
from bitsfusion.data.world_training import WorldData
from bitsfusion.errors import InputError

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    tokens = ["<|startoftext|>", "<|endoftext|>", *ALPHABET, *(f"{letter}</w>" for letter in ALPHABET)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=12)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).eval()


@pytest.fixture
def folder(tmp_path):
    lines = []
    for index, size in enumerate([(32, 32), (48, 32), (32, 64), (40, 40), (33, 35)]):
        Image.new("RGB", size, (50 * index, 0, 255 - 50 * index)).save(tmp_path / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": ALPHABET[index], "more": 1}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def data_of(folder, vae, tokenizer, **options) -> CaptionedData:
    return CaptionedData(folder, vae, tokenizer, **{"resolution": 32, **options})


def test_images_are_cut_to_the_centre_square(tmp_path):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    square = load_pixels(tmp_path / "wide.png", 20)
    assert square.shape == (3, 20, 20) and square.dtype == torch.float32
    assert torch.all(square == 1)


def test_latents_are_the_scaled_mean_of_the_posterior(vae):
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    latents = encode_images(vae, pixels)
    assert latents.shape == (3, 4, 8, 8) and not latents.requires_grad
    with torch.no_grad():
        assert torch.allclose(latents, vae.encode(pixels).latent_dist.mean * 0.5, atol=1e-6)


def test_every_image_comes_once_an_epoch_over_steps_and_processes(folder, vae, tokenizer):
    data = data_of(folder, vae, tokenizer)
    names = [name for step in range(5) for rank in range(2) for name in data.batch(step, rank, 2, 1).names]
    assert len(set(names[:5])) == 5 and len(set(names[5:])) == 5
    assert names[:5] != names[5:], "a new order each epoch"


@pytest.mark.parametrize("cache", [True, False])
def test_a_batch_is_a_function_of_its_arguments(folder, vae, tokenizer, cache):
    data, fresh = (data_of(folder, vae, tokenizer, cache_latents=cache) for _ in range(2))
    for step in range(4):
        data.batch(step, 0, 1, 3)
    one, two = data.batch(2, 0, 1, 3), fresh.batch(2, 0, 1, 3)
    assert one.names == two.names
    assert torch.equal(one.input_ids, two.input_ids)
    assert torch.equal(one.latents, two.latents)
    assert one.latents.shape == (3, 4, 8, 8) and one.input_ids.shape == (3, 12)


def test_captions_belong_to_their_images(folder, vae, tokenizer):
    data = data_of(folder, vae, tokenizer)
    batch = data.batch(0, 0, 1, 5)
    texts = {str(image.path): image.text for image in data.images}
    wanted = [tokenizer(texts[name]).input_ids for name in batch.names]
    assert [row[:3].tolist() for row in batch.input_ids] == wanted


def test_the_fingerprint_follows_captions_and_resolution(folder, vae, tokenizer):
    first = data_of(folder, vae, tokenizer).fingerprint
    assert data_of(folder, vae, tokenizer).fingerprint == first
    assert data_of(folder, vae, tokenizer, resolution=16).fingerprint != first
    listing = folder / "metadata.jsonl"
    listing.write_text(listing.read_text().replace('"text": "a"', '"text": "z"'))
    assert data_of(folder, vae, tokenizer).fingerprint != first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata\.jsonl:1: wanted a JSON object"),
        ('["a"]', r"metadata\.jsonl:1: wanted .*file_name"),
        ('{"file_name": "0.png"}', r"metadata\.jsonl:1: wanted .*text"),
        ('{"file_name": "gone.png", "text": ""}', r"metadata\.jsonl:1: no image"),
        ('{"file_name": "../x.png", "text": ""}', "points outside the folder"),
        ("", "lists no images"),
    ],
)
def test_a_wrong_listing_is_refused(folder, line, message):
    (folder / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        read_image_folder(folder)


def test_no_listing_a_bad_image_and_a_bad_resolution_are_refused(folder, vae, tokenizer):
    with pytest.raises(InputError, match="wanted a multiple of 4 pixels"):
        data_of(folder, vae, tokenizer, resolution=30)
    (folder / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png: wanted an image"):
        data_of(folder, vae, tokenizer).batch(0, 0, 1, 5)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"metadata\.jsonl: no such file"):
        read_image_folder(folder)


def test_the_world_is_a_pool_sampled_by_rank_and_step(vae, tokenizer):
    data = WorldData(vae, tokenizer, seed=3, pool=40)
    one, again = data.batch(5, 0, 1, 16), WorldData(vae, tokenizer, seed=3, pool=40).batch(5, 0, 1, 16)
    assert one.latents.shape == (16, 4, 16, 16) and one.input_ids.shape == (16, 12)
    assert torch.equal(one.latents, again.latents) and torch.equal(one.input_ids, again.input_ids)
    assert data.batch(5, 1, 2, 16).names != one.names != data.batch(6, 0, 1, 16).names
    train = {prompt.text for tag in ("single_object", "colors", "counting") for prompt in all_prompts(tag, "train")}
    test = {prompt.text for tag in ("single_object", "colors", "counting") for prompt in all_prompts(tag, "test")}
    assert set(one.names) & train and not set(one.names) & test
    assert data.fingerprint != WorldData(vae, tokenizer, seed=4, pool=4).fingerprint
