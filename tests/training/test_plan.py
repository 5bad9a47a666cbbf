"""The plan's counts against counts made another way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bitsfusion.architectures.registry import DENOISERS, model_layers
from bitsfusion.errors import InputError
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.training.config import PAPER_STAGE1, PAPER_STAGE2, TrainingConfig
from bitsfusion.training.plan import Machine, count_forward, plan_stage

from ..tiny.transformers import CONFIGS, build_transformer
from ..tiny.unet import build_unet

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def counted(model, forward) -> int:
    """2 x inputs x outputs x places of each Linear and Conv2d, and the two products of each attention, by hooks."""
    operations = []

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Linear):
            operations.append(2 * inputs[0].numel() * module.out_features)
        elif isinstance(module, torch.nn.Conv2d):
            operations.append(2 * output.numel() * module.weight[0].numel())

    for module in model.modules():
        module.register_forward_hook(count)
    attention = functional.scaled_dot_product_attention

    def watched(query, key, value, **options):
        operations.append(4 * query.numel() * key.shape[-2])
        return attention(query, key, value, **options)

    functional.scaled_dot_product_attention = watched
    try:
        with torch.no_grad():
            forward()
    finally:
        functional.scaled_dot_product_attention = attention
    return sum(operations)


def test_operations_are_those_of_the_layers():
    unet = build_unet()
    found = counted(unet, lambda: unet(torch.randn(1, 4, 4, 4), torch.tensor([1]), torch.randn(1, 8, 16)))
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    assert count_forward(config, 4, 8).flops == found


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_of_a_transformer_are_those_of_its_layers(name):
    model, family = build_transformer(name), DENOISERS[name]
    config = {**CONFIGS[name], "_class_name": name}
    sample, conditioning = family.example(config, 1, 4, 8)
    found = counted(model, lambda: family.predict(model, sample, torch.full((1,), 500.0), conditioning))
    if name == "SanaTransformer2DModel":  # linear attention: two products with [width + 1, width] states
        heads, width = CONFIGS[name]["num_attention_heads"], CONFIGS[name]["attention_head_dim"]
        found += CONFIGS[name]["num_layers"] * heads * 4 * 16 * width * (width + 1)
    assert count_forward(config, 4, 8).flops == found


def test_shards_divide_what_trains():
    config = {key: value for key, value in build_unet().config.items() if not key.startswith("_")}
    whole, parts = (plan_stage(config, TrainingConfig(ema_decay=0.9, shard=shard), 4, 8) for shard in (False, True))
    for part in ("weights", "gradients", "moments", "average"):
        assert parts.bytes[part] == whole.bytes[part] // 8
    assert parts.bytes["teacher"] == whole.bytes["teacher"] and parts.bytes["gathered blocks"] > 0
    assert parts.bytes_per_gpu < whole.bytes_per_gpu


def test_counts_grow_with_the_image_and_fall_with_checkpointing():
    config = {key: value for key, value in build_unet().config.items() if not key.startswith("_")}
    small, large, low = (
        count_forward(config, 8, 8),
        count_forward(config, 16, 8),
        count_forward(config, 16, 8, "bf16"),
    )
    assert 3.5 * small.flops < large.flops and low.flops == large.flops
    assert 3 * small.activations < large.activations
    assert large.checkpointed < large.activations
    assert 0.4 * large.activations < low.activations < 0.75 * large.activations


def test_light_training_holds_gradients_moments_and_averages_of_what_trains():
    unet = build_unet()
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    options = {"ema_decay": 0.9, "trained": "light"}
    full, light = (
        plan_stage(config, TrainingConfig(**{**options, "trained": kind}), 4, 8) for kind in ("all", "light")
    )
    fake_quantize_model(unet, dict.fromkeys(model_layers(unet), 2))
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.dim() == 1)
    assert (light.bytes["gradients"], light.bytes["moments"]) == (4 * trained, 8 * trained)
    assert light.bytes["average"] == 4 * trained < full.bytes["average"]
    assert all(light.bytes[part] == full.bytes[part] for part in ("weights", "teacher", "activations"))


@pytest.mark.slow
def test_the_papers_stages_fit_eight_gpus():
    plans = [
        plan_stage(SD15, preset.model_copy(update={"mixed_precision": "bf16", "gradient_checkpointing": True}), 64, 77)
        for preset in (PAPER_STAGE1, PAPER_STAGE2)
    ]
    assert [plan.samples_per_step for plan in plans] == [256, 1024]
    assert all(plan.parameters == 859_520_964 and plan.to_dict()["fits"] for plan in plans)
    one, two = plans
    assert two.days / one.days == pytest.approx(1024 * 50 / (256 * 20) * 4 / 5, rel=1e-6)
    # 339 billion multiply-adds in the layers, as is known of this UNet at 512 pixels; then attention, by its shapes:
    # five blocks each at 64 x 64, 32 x 32 and 16 x 16, one at 8 x 8, over the places themselves and 77 tokens.
    levels = {64: (320, 5), 32: (640, 5), 16: (1280, 5), 8: (1280, 1)}
    attention = sum(4 * size**2 * width * (size**2 + 77) * count for size, (width, count) in levels.items())
    assert one.flops_per_sample == pytest.approx(5 * (2 * 338.6e9 + attention), rel=0.002)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="multiple of 160"):
        plan_stage(SD15, TrainingConfig(train_batch_size=32, total_batch_size=256), 64, 77, Machine(gpus=5))
