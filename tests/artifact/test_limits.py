"""Limits follow what the files hold: no model is too large, and no small file stands for a large model."""

from __future__ import annotations

import json

import pytest
import torch

from bitsfusion.architectures.registry import model_layers
from bitsfusion.artifact.expected import ExpectedSize, expected_size
from bitsfusion.artifact.limits import check_memory, check_model_config
from bitsfusion.artifact.schema import PACKED_SUFFIX, TimeFeaturesEntry, parse_config
from bitsfusion.artifact.skeleton import empty_model, make_packed
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.artifact.weight_file import write_weights
from bitsfusion.artifact.writer import config_text
from bitsfusion.errors import ArtifactError

LARGE = {"_class_name": "QwenImageTransformer2DModel", "num_layers": 30}
"""Half of Qwen-Image: 10.3 G weights, more than 2^33."""


@pytest.fixture(scope="module")
def large() -> ExpectedSize:
    bits = dict.fromkeys(model_layers(empty_model(LARGE)), 1)
    return expected_size(LARGE, bits, TimeFeaturesEntry(kind="none"), {})


def test_more_than_2_33_weights_are_read(large):
    assert sum(large.config.weights.values()) > 1 << 33
    config = parse_config(json.loads(json.dumps(large.config.model_dump(mode="json"))))
    model = empty_model(LARGE)
    make_packed(model, config)
    assert sum(tensor.nbytes for tensor in model.state_dict().values()) == large.in_memory
    check_memory(large.in_memory, large.file.total)


def test_a_small_file_that_claims_them_is_refused_before_anything_is_allocated(large, tmp_path):
    model = empty_model(LARGE)
    make_packed(model, large.config)
    tensors = {
        name: torch.zeros(1, dtype=torch.uint8) if name.endswith(PACKED_SUFFIX) else torch.zeros(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    write_weights(tmp_path / "diffusion_pytorch_model.safetensors", tensors.items())
    (tmp_path / "config.json").write_text(config_text(LARGE, large.config))
    with pytest.raises(ArtifactError, match=r"weights: got \d+ bytes in memory from \d+ in the files, wanted at most"):
        verify_folder(tmp_path)


def test_a_large_number_is_a_lie_unless_it_is_a_rotary_period():
    check_model_config({"rope_theta": 5_000_000, "text_config": {"rope_theta": 5_000_000}})
    with pytest.raises(ArtifactError, match="rope_theta: got a number of 21 bits"):
        check_model_config({"rope_theta": [1 << 20 | 1]})
    with pytest.raises(ArtifactError, match="num_layers: got a number of 21 bits"):
        empty_model({**LARGE, "num_layers": 1 << 20 | 1})
