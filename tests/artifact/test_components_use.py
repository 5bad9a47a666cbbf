"""What users do with a pipeline whose text encoder and VAE are packed."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.hooks import apply_group_offloading
from diffusers.quantizers import PipelineQuantizationConfig
from peft import LoraConfig
from transformers import AutoModel, CLIPTextModel

import bitsfusion
from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PackedEmbedding

from .drawing import images, load

TOKENS = torch.tensor([[0, 3, 5, 7, 1, 1, 1, 1]])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def expected(whole: Path) -> np.ndarray:
    return images(load(whole))


def copied(pipeline: Any) -> Any:
    return copy.deepcopy(pipeline)


def pickled(pipeline: Any) -> Any:
    pipeline.text_encoder = pickle.loads(pickle.dumps(pipeline.text_encoder))
    pipeline.vae = pickle.loads(pickle.dumps(pipeline.vae))
    return pipeline


def by_layer(pipeline: Any) -> Any:
    for model in (pipeline.text_encoder, pipeline.vae):
        cpu_offload(model, CPU, offload_buffers=True)
    return pipeline


def by_group(pipeline: Any) -> Any:
    for model in (pipeline.text_encoder, pipeline.vae):
        apply_group_offloading(model, onload_device=CPU, offload_type="leaf_level")
    return pipeline


def in_tiles(pipeline: Any) -> Any:
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    return pipeline


@pytest.mark.parametrize("way", [copied, pickled, by_layer, by_group, in_tiles], ids=lambda way: way.__name__)
def test_the_same_images(whole: Path, expected: np.ndarray, way: Any) -> None:
    assert np.array_equal(images(way(load(whole))), expected)


def test_fused_projections_would_be_dense_and_are_refused(whole: Path, expected: np.ndarray) -> None:
    pipeline = load(whole)
    with pytest.raises(InputError, match=r"fuse_qkv_projections.*dequantize\(\)"):
        pipeline.vae.fuse_qkv_projections()
    assert np.array_equal(images(pipeline), expected)


def test_image_to_image(whole: Path) -> None:
    """The encoder's half of the VAE runs, too."""
    loaded = load(whole, StableDiffusionImg2ImgPipeline)
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 4, "strength": 1.0, "output_type": "np"}
    made = loaded("a red cross", image=picture, generator=torch.Generator().manual_seed(1), **options).images
    assert made.shape == (1, 8, 8, 3) and np.isfinite(made).all()


def test_device_maps(whole: Path, expected: np.ndarray) -> None:
    assert np.array_equal(images(load(whole, device_map="balanced")), expected)
    assert CLIPTextModel.from_pretrained(whole / "text_encoder", device_map={"": "cpu"}).device == CPU
    with pytest.raises(InputError, match="got disk for encoder"):
        CLIPTextModel.from_pretrained(whole / "text_encoder", device_map={"": "cpu", "encoder": "disk"})


def test_other_ways_to_name_it(whole: Path, expected: np.ndarray) -> None:
    assert type(AutoModel.from_pretrained(whole / "text_encoder")) is CLIPTextModel
    named = PipelineQuantizationConfig(quant_mapping={"vae": bitsfusion.BitsFusionConfig()})
    assert np.array_equal(images(load(whole, quantization_config=named)), expected)


def test_compiled_in_one_graph(whole: Path) -> None:
    encoder = CLIPTextModel.from_pretrained(whole / "text_encoder")
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(TOKENS).last_hidden_state, encoder(TOKENS).last_hidden_state)


def test_adapters_train_on_top(whole: Path, tmp_path: Path) -> None:
    encoder = CLIPTextModel.from_pretrained(whole / "text_encoder")
    encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    encoder(TOKENS).last_hidden_state.square().mean().backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert trained and all("lora" in name for name in trained)
    with pytest.raises(InputError, match="got a model with adapters"):
        encoder.save_pretrained(tmp_path)


def test_textual_inversion_needs_a_dense_embedding(whole: Path) -> None:
    """A new row cannot be written to packed ones; the way out is said."""
    loaded: StableDiffusionPipeline = load(whole)
    row = torch.randn(32, generator=torch.Generator().manual_seed(0))
    assert isinstance(loaded.text_encoder.get_input_embeddings(), PackedEmbedding)
    with pytest.raises(InputError, match=r"call dequantize\(\) on the model first"):
        loaded.load_textual_inversion({"<thing>": row}, token="<thing>")
    loaded = load(whole)
    loaded.text_encoder.dequantize()
    loaded.load_textual_inversion({"<thing>": row}, token="<thing>")
    number = loaded.tokenizer.convert_tokens_to_ids("<thing>")
    assert torch.equal(loaded.text_encoder.get_input_embeddings().weight[number], row)
