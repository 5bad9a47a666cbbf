"""Pipelines that the page does not have are refused, each in a line, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import bitsfusion
from bitsfusion.errors import InputError

from ...tiny.transformers import build_transformer_pipeline


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SD3Transformer2DModel", "got a StableDiffusion3Pipeline .* wanted a StableDiffusionPipeline or AuraFlowPi"),
        ("AuraFlowTransformer2DModel", r"text_encoder: got a \w*T5EncoderModel .*, wanted a CLIPTextModel"),
    ],
)
def test_other_pipelines(name: str, message: str, tmp_path: Path) -> None:
    build_transformer_pipeline(name).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=message) as refusal:
        bitsfusion.export(tmp_path / "model", "web", tmp_path / "page")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
