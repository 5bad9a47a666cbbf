"""`export --to gguf`: exact for gguf's own reader, and drawn with by diffusers' GGUF loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    GGUFQuantizationConfig,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
)
from torch import Tensor

import bitsfusion
from bitsfusion.architectures.original import original_layout
from bitsfusion.errors import InputError
from bitsfusion.exporting.gguf import layers_read
from bitsfusion.runs.packing import init_pipeline

from ..tiny.transformers import CONFIGS, build_sd3_pipeline

READ_BY_DIFFUSERS = "q2_k,q3_k,q4_0,q5_0,q6_k,q8_0"
WIDE = dict(attention_head_dim=32, num_attention_heads=8)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed Stable Diffusion 3 wide enough for blocks of 256; scales are float16 numbers."""
    folder = tmp_path_factory.mktemp("sd3")
    pipeline = build_sd3_pipeline()
    torch.manual_seed(0)
    config = CONFIGS["SD3Transformer2DModel"] | WIDE | dict(caption_projection_dim=256)
    pipeline.register_modules(transformer=SD3Transformer2DModel(**config))
    pipeline.save_pretrained(folder / "dense")
    init_pipeline(str(folder / "dense"), folder / "packed", bits=3.0, scale_dtype="float16")
    return folder / "packed"


def unpacked(model: Any) -> dict[str, Tensor]:
    """Every tensor of a packed model in memory, float32."""
    model.dequantize()
    return dict(model.state_dict())


def check_exact(file: Path, tensors: dict[str, Tensor], config: Any, name: str) -> set[str]:
    """Everything but what is F16 equals the model's tensors, in the original layout; returns the types met."""
    layout = original_layout(name, config, tensors)
    read = dict(layers_read(file))
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert read.keys() == layout.tensors.keys()
    for there, source in layout.tensors.items():
        joined = torch.cat([tensors[part] for part in source.names])
        joined = joined.roll(len(joined) // 2, 0) if source.swapped else joined
        wanted = joined.half().float() if types[there] == "F16" else joined
        assert np.array_equal(read[there].reshape(wanted.shape), wanted.numpy()), there
    return set(types.values())


def test_every_weight_of_a_transformer(sd3: Path, tmp_path: Path) -> None:
    made = bitsfusion.export(sd3, "gguf", tmp_path / "sd3.gguf")
    model = SD3Transformer2DModel.from_pretrained(sd3 / "transformer")
    types = check_exact(tmp_path / "sd3.gguf", unpacked(model), model.config, "SD3Transformer2DModel")
    assert all(share.exact for share in made.shares) and types == {share.type for share in made.shares}
    assert {"Q3_K", "F32"} < types and len(types) > 3
    assert made.bytes == (tmp_path / "sd3.gguf").stat().st_size
    fields = gguf.GGUFReader(tmp_path / "sd3.gguf").fields
    assert fields["general.architecture"].contents() == "sd3"


def test_ternary(tmp_path: Path) -> None:
    torch.manual_seed(0)
    flux = CONFIGS["FluxTransformer2DModel"] | dict(num_attention_heads=8, attention_head_dim=32)
    FluxTransformer2DModel(**flux | dict(axes_dims_rope=(8, 12, 12))).save_pretrained(tmp_path / "dense")
    init_pipeline(str(tmp_path / "dense"), tmp_path / "packed", recipe="uniform:1", scale_dtype="float16")
    model = FluxTransformer2DModel.from_pretrained(tmp_path / "packed")
    tensors, config = unpacked(model), model.config
    sizes = {}
    for types in ("tq1_0", "tq2_0", "q2_k", "q8_0"):
        made = bitsfusion.export(tmp_path / "packed", "gguf", tmp_path / f"{types}.gguf", types=types)
        met = check_exact(tmp_path / f"{types}.gguf", tensors, config, "FluxTransformer2DModel")
        assert met - {"F16", "F32"} == {types.upper()}
        sizes[types] = made.bytes
    assert list(sizes.values()) == sorted(sizes.values())


@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_diffusers_draws_the_same_picture(sd3: Path, tmp_path: Path, names: str) -> None:
    bitsfusion.export(sd3, "gguf", tmp_path / "sd3.gguf", types=READ_BY_DIFFUSERS, names=names)
    read = SD3Transformer2DModel.from_single_file(
        str(tmp_path / "sd3.gguf"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        config=str(sd3.parent / "dense"),
        subfolder="transformer",
        torch_dtype=torch.float32,
    )
    assert "GGUF" in type(read.transformer_blocks[0].ff.net[0].proj).__name__
    pictures = []
    for transformer in (read, SD3Transformer2DModel.from_pretrained(sd3 / "transformer")):
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            sd3, transformer=transformer, text_encoder_3=None, tokenizer_3=None
        )
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(1)
        pictures.append(pipeline("a red circle", num_inference_steps=3, generator=noise, output_type="np").images)
    assert np.ptp(pictures[0]) > 0.05
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-4


def test_a_unet(packed: Path, tmp_path: Path) -> None:
    made = bitsfusion.export(packed, "gguf", tmp_path / "unet.gguf")
    assert any("convolutions are F16" in note for note in made.notes)
    assert any("--scale-dtype float16" in note for note in made.notes)
    assert {"F16", "F16, fitted", "Q5_0"} < {share.type for share in made.shares}
    read = dict(layers_read(tmp_path / "unet.gguf"))
    unet: Any = UNet2DConditionModel.from_pretrained(packed / "unet")
    wanted = unet.conv_in.unpack_weight(torch.float16).float().numpy()
    assert np.array_equal(read["model.diffusion_model.input_blocks.0.0.weight"], wanted)


def test_refusals(packed: Path, sd3: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"types: got 'q9', wanted tq1_0, tq2_0"):
        bitsfusion.export(packed, "gguf", tmp_path / "a.gguf", types="q9")
    with pytest.raises(InputError, match=r"names: got 'mine', wanted original, diffusers"):
        bitsfusion.export(packed, "gguf", tmp_path / "a.gguf", names="mine")
    with pytest.raises(InputError, match=r"dtype: got a value with to='gguf', wanted it with dense only"):
        bitsfusion.export(packed, "gguf", tmp_path / "a.gguf", dtype="float16")
    with pytest.raises(InputError, match="model: got a AutoencoderKL, wanted one of UNet"):
        bitsfusion.export(packed / "vae", "gguf", tmp_path / "a.gguf")
    with pytest.raises(InputError, match="wanted float32 or float16"):
        init_pipeline("embedded", tmp_path / "odd", recipe="uniform:2", scale_dtype="bfloat16")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
