from __future__ import annotations

import pytest
from diffusers import StableDiffusionPipeline

from ..tiny.pipeline import build_one_block_pipeline


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return build_one_block_pipeline()
