from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsfusion.errors import InputError
from bitsfusion.metrics.clip_score import ClipScorer

from ..tiny.scorer import build_scorer
from ..tiny.text import PROMPTS


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_is_the_cosine_of_clips_own_logits(images):
    scorer = build_scorer()
    scores = scorer.score(images, PROMPTS)
    tokens = scorer.tokenizer(list(PROMPTS), padding="max_length", max_length=8, return_tensors="pt")
    pixels = scorer.image_processor(images=list(images), return_tensors="pt")
    with torch.no_grad():
        logits = scorer.model(**tokens, pixel_values=pixels["pixel_values"]).logits_per_image
    expected = logits.diag() / scorer.model.logit_scale.exp()
    assert scores == pytest.approx(expected.detach().numpy(), abs=1e-6)
    assert np.abs(scores).max() <= 1 and np.ptp(scores) > 1e-3


def test_batches_do_not_matter(images):
    whole = build_scorer().score(images, PROMPTS)
    assert build_scorer(batch_size=2).score(images, PROMPTS) == pytest.approx(whole, abs=1e-6)
    assert build_scorer().score(images[:0], []).shape == (0,)


def test_loads_from_a_folder(images, tmp_path):
    scorer = build_scorer()
    for part in (scorer.model, scorer.tokenizer, scorer.image_processor):
        part.save_pretrained(tmp_path)
    loaded = ClipScorer.from_pretrained(tmp_path)
    assert loaded.score(images, PROMPTS) == pytest.approx(scorer.score(images, PROMPTS), abs=1e-6)


def test_cuts_long_prompts(images):
    scorer = build_scorer()
    long, cut = "red circle " * 10, "red circle " * 3
    assert scorer.score(images[:1], [long]) == pytest.approx(scorer.score(images[:1], [cut]), abs=1e-6)


def test_refuses(images, tmp_path):
    scorer = build_scorer()
    with pytest.raises(InputError, match="5 images and 1 prompts"):
        scorer.score(images, ["red"])
    with pytest.raises(InputError, match="float64"):
        scorer.score(images / 255, PROMPTS)
    with pytest.raises(InputError, match="wanted a CLIP model") as caught:
        ClipScorer.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
