"""The shipped model: its size, its parts, and that its scorer measures something."""

import random

import numpy as np
import pytest

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.embedded import PIPELINE_FOLDER, SCORER_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import TASKS, fits
from bitsfusion.evaluation.prompts import world_prompts
from bitsfusion.evaluation.rungs import RungScores, geneval
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.pipelines.load import load_pipeline


def test_the_pipeline_is_small_and_has_every_kind_of_layer():
    assert sum(path.stat().st_size for path in PIPELINE_FOLDER.rglob("*") if path.is_file()) <= 12e6
    layers = model_layers(load_pipeline("embedded").unet)
    for kind in (
        "time_emb_proj",
        "conv_shortcut",
        "attn1.to_q",
        "attn2.to_k",
        "downsamplers",
        "upsamplers",
        "mid_block",
    ):
        assert any(kind in name for name in layers), kind
    assert {layer.role for layer in layers.values()} == set(LayerRole) - {LayerRole.CONDITION}


def test_the_scorer_finds_the_caption_among_a_hundred():
    """100 captions of which only its own is true of each drawing, from the test split."""
    rng = random.Random(0)
    pairs = []
    while len(pairs) < 100:
        prompt = QUICK.sample_prompt(rng, "test")
        scene = QUICK.sample_scene(prompt, rng)
        if not any(fits(other, scene) or fits(prompt, drawn) for other, drawn in pairs):
            pairs.append((prompt, scene))
    scorer = ClipScorer.from_pretrained(SCORER_FOLDER)
    images = np.stack([QUICK.draw(scene) for _, scene in pairs])
    texts = scorer.text_features([prompt.text for prompt, _ in pairs])
    nearest = (scorer.image_features(images) @ texts.T).argmax(dim=1).cpu().numpy()
    assert np.mean(nearest == np.arange(100)) >= 0.8


@pytest.mark.slow
def test_full_precision_draws_what_is_asked():
    """600 held-out prompts, PNDM, 50 steps: 0.80 overall and five of the six tasks at 0.75."""
    prompts = world_prompts(QUICK, "test", 100, 1024)
    pipeline = load_pipeline("embedded")
    images = generate_images(pipeline, prompts.texts, prompts.seeds, steps=50, guidance=7.5, batch_size=50)
    scores = RungScores("full_precision", None, prompts.check(images), None, None, 0.0, 0.0, 0.0)
    summary = geneval([scores], prompts)
    assert summary.overall >= 0.80
    assert sum(summary.tasks[tag].accuracy >= 0.75 for tag in TASKS) >= 5
