"""The tail and its file, the peers that are installed, and the table's parts; no drawing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitsfusion.architectures.base import DIFFUSERS_FILE
from bitsfusion.architectures.registry import model_layers
from bitsfusion.evaluation.rungs import RungScores
from bitsfusion.nn.replace import fake_quantize_model, fake_quantized_layers
from bitsfusion_lab.flow.peers import PEERS, apply_peer
from bitsfusion_lab.flow.table import COUNTING, Scored, change
from bitsfusion_lab.flow.tail import fill_tail, round_tail, tail_first, ternary_bits, ternary_bytes, write_file

from ...tiny.transformers import build_transformer


@pytest.fixture(scope="module")
def model():
    return build_transformer("AuraFlowTransformer2DModel")


def test_the_tail_fills_the_budget_ends_first(model, tmp_path):
    layers = model_layers(model)
    errors = {(name, 1): float(place) for place, name in enumerate(layers)}
    order = tail_first(layers, errors)
    ends = [name for name, bits in ternary_bits(layers, []).items() if bits == 8]
    assert set(order[: len(ends)]) == set(ends) and set(order) == set(layers)
    size, packed = ternary_bytes(model)
    assert fill_tail(model, order, size) == [] and set(fill_tail(model, order, 10**9)) == set(layers)
    first = order[0]
    budget = size + 2 * layers[first].numel - packed[first]
    assert fill_tail(model, order, budget) == [first]
    student = copy.deepcopy(model)
    fake_quantize_model(student, ternary_bits(layers, [first]))
    assert write_file(student, tmp_path / "file", [first]) == pytest.approx(
        budget, rel=0.02
    )  # names and their metadata
    round_tail(student, [first])
    stored = load_file(tmp_path / "file" / DIFFUSERS_FILE)
    assert stored[f"{first}.weight"].dtype == torch.float16 and first not in fake_quantized_layers(student)
    assert torch.equal(stored[f"{first}.weight"].float(), student.get_submodule(first).weight)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_rounds_the_blocks_and_writes_fewer_bytes(peer, model, tmp_path):
    if not peer.installed:
        pytest.skip(f"{peer.library} is not installed")
    wide = build_transformer_of_width()
    made = apply_peer(peer, wide, tmp_path / "model.safetensors")
    layers = model_layers(wide)
    name = "joint_transformer_blocks.0.ff.linear_1"
    ours, theirs = wide.get_submodule(name).weight, made.get_submodule(name).weight
    error = float(((ours - theirs).norm() / ours.norm()).detach())
    assert 0.02 < error < 0.6
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * sum(layer.numel for layer in layers.values())


def build_transformer_of_width():
    """Wide enough for groups of 128."""
    from diffusers import AuraFlowTransformer2DModel

    torch.manual_seed(0)
    return AuraFlowTransformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=128,
        pos_embed_max_size=16,
    ).eval()


def test_counting_stands_apart_and_seeds_are_paired():
    tags = [COUNTING] * 3 + ["colors"] * 3

    def scored(name, *rows):
        scores = [RungScores(name, seed, [bool(v) for v in row], None, None, 0, 0, 0) for seed, row in enumerate(rows)]
        return Scored(name, scores, tags)

    one = scored("one", [1, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 1])
    two = scored("two", [0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 0])
    assert one.right(COUNTING).shape == (2, 3) and one.right("rest").shape == (2, 3)
    assert change(one, two, COUNTING).mean == pytest.approx(4 / 6)
    assert change(one, two, "rest").mean == pytest.approx(-1 / 6)
    assert change(one, two).mean == pytest.approx(float(np.mean([(5 - 4) / 6, (4 - 2) / 6])))
    assert change(one, two).training_seeds == 2
