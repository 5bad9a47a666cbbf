"""Real classes with random weights, loaded from folders; and the drawn world, whose reader is exact."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from bitsfusion.embedded import SCORER_FOLDER
from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import TASKS, Object, fits
from bitsfusion.errors import InputError
from bitsfusion.metrics.geneval.colors import ClipColors, crop
from bitsfusion.metrics.geneval.detector import RENAMED, Mask2FormerDetector
from bitsfusion.metrics.geneval.evaluator import Evaluator
from bitsfusion.metrics.geneval.prompts import COLORS, GenEvalPrompt
from bitsfusion.metrics.geneval.scoring import Detection, Thresholds
from bitsfusion.metrics.geneval.world import WorldReader

from ...tiny.scorer import build_scorer

PUBLISHED = Path(__file__).parents[4] / "shared" / "data"
LABELS = ["person", "mouse", "sofa"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask2former")
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=5,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return Mask2FormerDetector.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


def test_mask2former_sees_what_transformers_own_reading_of_its_output_says(detector, picture):
    found = detector.detect(picture)
    seen = [(name, item) for name, items in found.items() for item in items]
    assert 1 <= len(seen) <= 5
    assert list(found) == [name for name in detector.labels if name in found]  # the order of the official details
    for _, item in seen:
        assert item.mask.shape == (48, 80) and 0 < item.score < 1
        rows, columns = np.where(item.mask)
        assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    inputs = detector.image_processor(images=[picture], return_tensors="pt")
    with torch.no_grad():
        output = detector.model(pixel_values=inputs["pixel_values"])
    # Its masks come by way of 384x384, so that sizes are near but not the same, and scores to about a hundredth.
    (theirs,) = detector.image_processor.post_process_instance_segmentation(
        output, threshold=0, target_sizes=[(48, 80)], return_binary_maps=True
    )
    expected = sorted((round(part["score"], 2), part["label_id"]) for part in theirs["segments_info"])
    names = ["person", "computer mouse", "couch"]
    ours = sorted((item.score, names.index(name)) for name, item in seen)
    assert [label for _, label in ours] == [label for _, label in expected]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in expected], abs=0.02)
    areas = sorted(float(mask.mean()) for mask in theirs["segmentation"])
    assert sorted(float(item.mask.mean()) for _, item in seen) == pytest.approx(areas, abs=0.05)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
def test_labels_that_differ_become_published_names():
    names = set((PUBLISHED / "geneval_object_names.txt").read_text().splitlines())
    assert set(RENAMED.values()) <= names and not names & set(RENAMED)


def test_the_detectors_classes_are_checked_and_its_name_says_it_is_not_the_official_one(detector):
    detector.check_classes(("computer mouse", "person"))
    with pytest.raises(InputError, match="3 classes without 'kite'"):
        detector.check_classes(("person", "kite"))
    assert "transformers; not mask2former_swin-s" in detector.name


def test_no_detector_there(tmp_path):
    with pytest.raises(InputError, match="wanted a Mask2Former model") as caught:
        Mask2FormerDetector.from_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_no_detector(clip_folder):
    with pytest.raises(InputError, match="wanted a Mask2Former") as caught:
        Mask2FormerDetector.from_pretrained(str(clip_folder))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    scorer = build_scorer()
    for part in (scorer.model, scorer.tokenizer, scorer.image_processor):
        part.save_pretrained(folder)
    return folder


def test_clip_colours_are_those_of_the_mean_text(clip_folder, picture):
    colors = ClipColors.from_pretrained(str(clip_folder))
    box = Detection((10, 5, 40, 30), 0.9)
    scorer = colors.scorer
    pixels = scorer.image_processor(images=[picture[5:30, 10:40]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        image = scorer.model.get_image_features(pixel_values=pixels)
        image = getattr(image, "pooler_output", image)
        likeness = []
        for color in COLORS:
            texts = [
                f"a photo of a {color} circle",
                f"a photo of a {color}-colored circle",
                f"a photo of a {color} object",
            ]
            length = scorer.model.config.text_config.max_position_embeddings
            tokens = scorer.tokenizer(
                texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            text = scorer.model.get_text_features(**tokens)
            text = getattr(text, "pooler_output", text)
            mean = (text / text.norm(dim=1, keepdim=True)).mean(0)
            likeness.append(float(torch.cosine_similarity(image, mean[None])))
    assert colors.names(picture, [box], "circle") == [COLORS[int(np.argmax(likeness))]]
    assert colors.names(picture, [], "circle") == [] and colors.name == str(clip_folder)


def test_the_crop_is_grey_outside_the_mask(picture):
    mask = np.zeros((48, 80), dtype=bool)
    mask[10:20, 30:50] = True
    cut = crop(picture, Detection((28, 8, 52, 22), 0.9, mask))
    assert cut.shape == (14, 24, 3)
    assert (cut[2:12, 2:22] == picture[10:20, 30:50]).all()
    assert (cut[:2] == 0x99).all() and (cut[:, :2] == 0x99).all() and (cut[12:] == 0x99).all()
    assert (crop(picture, Detection((1, 2, 5, 9), 0.9)) == picture[2:9, 1:5]).all()


def test_a_scorer_trained_on_the_world_names_its_colours():
    """The whole chain with weights that mean something: the embedded CLIP on crops of drawn shapes."""
    colors = ClipColors.from_pretrained(str(SCORER_FOLDER))
    right = 0
    for color in ("red", "green", "blue", "yellow", "purple", "white"):
        image = QUICK.draw((Object("square", color, "large", 5),))
        (seen,) = WorldReader().detect(image)["square"]
        mask = np.zeros((64, 64), dtype=bool)
        left, top, far, bottom = (int(edge) for edge in seen.box)
        mask[top:bottom, left:far] = True
        whole = Detection((0, 0, 64, 64), 0.9)  # the scorer knows whole pictures, no crops on grey
        right += colors.names(image, [whole], "square") == [color]
    assert right >= 5


def test_detector_and_colours_from_folders_judge_an_image(detector, clip_folder, picture):
    """The verdict is that on what the detector says, with the colour that CLIP says of the same object."""
    colors = ClipColors.from_pretrained(str(clip_folder))
    lenient = Evaluator(detector, colors, Thresholds(confidence=0.0))
    name, (best, *_) = next(
        (name, sorted(seen, key=lambda item: -item.score)) for name, seen in detector.detect(picture).items()
    )
    (seen,) = colors.names(picture, [best], name)
    for color in (seen, next(color for color in COLORS if color != seen)):
        clause = {"class": name, "count": 1, "color": color}
        prompt = GenEvalPrompt.model_validate({"tag": "colors", "include": [clause], "prompt": f"a {color} {name}"})
        line = lenient.evaluate(picture, prompt, "0.png")
        assert line.correct is (color == seen)
        assert line.reason == ("" if line.correct else f"expected {color} {name}>=1, found 0 {color}; and 1 {seen}")
        assert json.loads(line.details)[name][0] == [*best.box, best.score]
    strict = Evaluator(detector, colors).evaluate(picture, prompt, "0.png")  # a random model is sure of nothing
    assert (strict.reason, strict.details) == (f"expected {name}>=1, found 0", "{}")


def evaluator():
    return Evaluator(WorldReader(), WorldReader())


def test_the_world_through_the_official_rules():
    """A drawn scene that fits its prompt strictly is right by the evaluator; with colours swapped it is not."""
    rng, verdicts = random.Random(0), dict.fromkeys(TASKS, 0)
    for prompt in QUICK.prompt_set("validation", 8):
        image = QUICK.draw(QUICK.sample_scene(prompt, rng))
        assert fits(prompt, QUICK.read(image))
        line = evaluator().evaluate(image, GenEvalPrompt.model_validate(prompt.metadata()), "0.png")
        assert (line.correct, line.reason) == (True, ""), line
        verdicts[line.tag] += 1
    assert set(verdicts.values()) == {8}
    asked = {"tag": "color_attr", "prompt": "a red circle and a blue square"}
    asked["include"] = [
        {"class": "circle", "count": 1, "color": "red"},
        {"class": "square", "count": 1, "color": "blue"},
    ]
    swapped = QUICK.draw((Object("circle", "blue", "large", 5), Object("square", "red", "large", 6)))
    line = evaluator().evaluate(swapped, GenEvalPrompt.model_validate(asked), "0.png")
    assert line.reason.splitlines()[0] == "expected red circle>=1, found 0 red; and 1 blue"
    assert json.loads(line.details) == {"circle": [[16, 16, 32, 32, 1.0]], "square": [[32, 16, 48, 32, 1.0]]}
    below = {"tag": "position", "prompt": "a square below a circle"}
    below["include"] = [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["below", 0]}]
    line = evaluator().evaluate(swapped, GenEvalPrompt.model_validate(below), "0.png")
    assert line.reason == "expected square below target, found right of target"


def changed(scene, rng):
    """One object with another shape, colour or place, one less, one more, or all as they were."""
    by_cell = {item.cell: item for item in scene}
    cell = rng.choice(list(by_cell))
    item = by_cell.pop(cell)
    another = rng.choice(QUICK.cells)
    change = rng.randrange(6)
    if change == 0:
        item = Object(rng.choice(QUICK.shapes), item.color, "large", cell)
    elif change == 1:
        item = Object(item.shape, rng.choice(list(QUICK.colors)), "large", cell)
    elif change == 2:
        free = next(c for c in (another, *QUICK.cells, cell) if c not in by_cell)
        item = Object(item.shape, item.color, "large", free)
    if change != 3:
        by_cell[item.cell] = item
    if change == 4:
        by_cell.setdefault(another, Object(rng.choice(QUICK.shapes), rng.choice(list(QUICK.colors)), "large", another))
    return tuple(by_cell.values())


@pytest.mark.parametrize("tag", TASKS)
def test_on_the_world_the_official_rules_and_the_strict_check_differ_by_surplus_objects_only(tag):
    rng, seen, surplus = random.Random(tag), {True: 0, False: 0}, 0
    for _ in range(40):
        prompt = rng.choice(QUICK.all_prompts(tag, "validation"))
        scene = changed(QUICK.sample_scene(prompt, rng), rng)
        image = QUICK.draw(scene)
        line = evaluator().evaluate(image, GenEvalPrompt.model_validate(prompt.metadata()), "0.png")
        if len(scene) > sum(need.count for need in prompt.include):
            surplus += 1
            assert not fits(prompt, QUICK.read(image))
        else:
            seen[line.correct] += 1
            assert line.correct == fits(prompt, QUICK.read(image)), line
    assert min(seen.values()) >= 5 and surplus


def test_the_worlds_classes():
    with pytest.raises(InputError, match="got 'kite', wanted one of circle"):
        WorldReader().check_classes(("circle", "kite"))


def test_an_image_that_is_not_of_the_world():
    with pytest.raises(InputError, match=r"got \[48, 80, 3\], wanted \[64, 64, 3\]"):
        WorldReader().detect(np.zeros((48, 80, 3), dtype=np.uint8))


def test_the_settings_say_what_judged(detector):
    said = Evaluator(detector, WorldReader(), Thresholds(max_overlap=0.5)).settings()
    assert said["detector"] == detector.name and said["thresholds"]["max_overlap"] == 0.5
    json.dumps(said)
