"""Packed transformers of every class in use: adapters on top, offloaded, both as the dequantized model."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch

from bitsfusion.architectures.registry import DENOISERS, layers_to_assign
from bitsfusion.diffusion.denoise import denoise
from bitsfusion.errors import InputError
from bitsfusion.runs.packing import init_pipeline

from ..tiny.transformers import CONFIGS, build_transformer, build_transformer_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=CONFIGS)
def packed(request, tmp_path_factory):
    """A class, and a packed folder of it."""
    folder = tmp_path_factory.mktemp(request.param)
    model = build_transformer(request.param)
    model.save_pretrained(folder / "source")
    init_pipeline(str(folder / "source"), folder / "packed", recipe="uniform:3")
    return type(model), folder / "packed"


def predicted(model):
    """One forward on inputs that are always the same."""
    name = type(model).__name__
    generator = torch.Generator().manual_seed(0)
    sample, conditioning = DENOISERS[name].example({**CONFIGS[name], "_class_name": name}, 2, 4, 6, generator)
    with torch.no_grad():
        return denoise(model, sample, torch.tensor([300.0, 700.0]), conditioning)


def test_an_adapter_adds_what_it_adds_to_the_dequantized_model(packed):
    peft = pytest.importorskip("peft")
    kind, folder = packed
    pair = [kind.from_pretrained(folder) for _ in range(2)]
    pair[1].dequantize()
    plain = predicted(pair[0])
    targets = [name for name, layer in layers_to_assign(pair[0]).items() if layer.kind == "attention"]
    outputs = []
    for model in pair:
        config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets)
        if hasattr(model, "add_adapter"):
            model.add_adapter(config)
        else:  # diffusers gives PixArt none of its own
            peft.inject_adapter_in_model(config, model)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        outputs.append(predicted(model))
    assert torch.equal(*outputs) and not torch.allclose(outputs[0], plain)
    if hasattr(pair[0], "disable_adapters"):
        pair[0].disable_adapters()
        assert torch.equal(predicted(pair[0]), plain)


def test_flux_adapters_load_through_the_pipeline(tmp_path):
    """diffusers looks up the weights' shapes in the state dict, where packed layers have none."""
    pytest.importorskip("peft")
    source = build_transformer_pipeline("FluxTransformer2DModel")
    source.transformer.save_pretrained(tmp_path / "source")
    init_pipeline(str(tmp_path / "source"), tmp_path / "packed", recipe="uniform:3")
    name, generator = "transformer.transformer_blocks.0.attn.to_k.lora", torch.Generator().manual_seed(1)
    lora = {
        f"{name}_{one}.weight": torch.randn(shape, generator=generator)
        for one, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    outputs = []
    for dense in (False, True):
        source.transformer = type(source.transformer).from_pretrained(tmp_path / "packed")
        if dense:
            source.transformer.dequantize()
        plain = predicted(source.transformer)
        source.load_lora_weights(dict(lora))
        outputs.append(predicted(source.transformer))
    assert torch.equal(*outputs) and not torch.equal(outputs[0], plain)

    channels = source.transformer.config.in_channels
    control = {
        "transformer.x_embedder.lora_A.weight": torch.ones(2, 2 * channels),
        "transformer.x_embedder.lora_B.weight": torch.ones(32, 2),
    }
    for copied in (False, True):
        packed = type(source.transformer).from_pretrained(tmp_path / "packed")
        source.transformer = copy.deepcopy(packed) if copied else packed
        source.load_lora_weights(dict(lora))
        for _ in range(2):
            with pytest.raises(InputError, match=r"x_embedder: got an adapter for a weight .*dequantize\(\)"):
                source.load_lora_weights(dict(control))
        assert source.transformer.config.in_channels == channels
        assert torch.equal(predicted(source.transformer), outputs[0])
    source.unload_lora_weights(reset_to_overwritten_params=True)
    source.transformer.save_pretrained(tmp_path / "again")
    source.transformer.dequantize()
    source.load_lora_weights(dict(control))


@pytest.mark.parametrize("way", ["layer", "group"])
def test_offloaded_it_computes_the_same(packed, way):
    kind, folder = packed
    expected = predicted(kind.from_pretrained(folder))
    model = kind.from_pretrained(folder)
    if way == "layer":
        accelerate.cpu_offload(model, execution_device=CPU, offload_buffers=True)
        assert any(buffer.is_meta for buffer in model.buffers())
    else:
        model.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    assert torch.equal(predicted(model), expected)
