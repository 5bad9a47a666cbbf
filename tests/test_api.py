"""The top-level functions: their examples run, and a pipeline quantized in memory is one that was loaded packed."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest
import torch

import bitsfusion
from bitsfusion import api
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.errors import InputError
from bitsfusion.nn.packed import PACKED_LAYERS
from bitsfusion.pipelines.load import load_pipeline


def draw(pipeline) -> torch.Tensor:
    noise = torch.Generator().manual_seed(3)
    return torch.from_numpy(pipeline("a red circle", num_inference_steps=50, generator=noise, output_type="np").images)


def test_examples():
    outcome = doctest.testmod(api)
    assert outcome.attempted and not outcome.failed


def test_every_public_name_is_there():
    for name in bitsfusion.__all__:
        assert getattr(bitsfusion, name) is not None


def test_public_functions_say_what_they_take_and_give():
    functions = [getattr(bitsfusion, name) for name in bitsfusion.__all__]
    for function in filter(inspect.isfunction, functions):
        signature = inspect.signature(function)
        types = [signature.return_annotation, *(each.annotation for each in signature.parameters.values())]
        for annotation in map(str, types):
            assert annotation != str(inspect.Parameter.empty), function
            assert not re.search(r"\bAny\b", annotation), (function, annotation)
        assert function.__doc__, function


def test_quantized_in_memory_is_saved_and_loaded_as_a_packed_folder(tmp_path):
    original = load_pipeline("embedded")
    before = draw(original)
    small = bitsfusion.quantize(original, bits=1.99)
    assert type(small) is type(original)
    assert any(isinstance(layer, PACKED_LAYERS) for layer in small.unet.modules())
    assert torch.equal(draw(original), before)
    small.save_pretrained(tmp_path / "small")
    verify_folder(tmp_path / "small" / "unet")
    assert bitsfusion.inspect(tmp_path / "small" / "unet").average_bits == pytest.approx(1.99, abs=0.01)
    assert torch.equal(draw(load_pipeline(str(tmp_path / "small"))), draw(small))
    with pytest.raises(InputError, match="quantized already"):
        bitsfusion.quantize(small)


def test_bits_that_cannot_be_met():
    with pytest.raises(InputError, match=r"got 0.5 bits on average"):
        bitsfusion.quantize(load_pipeline("embedded"), bits=0.5)
