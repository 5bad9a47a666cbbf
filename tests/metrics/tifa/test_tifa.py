"""Scores of hand-made answers in the published form, and real classes with random weights loaded from folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    PreTrainedTokenizerFast,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
)

from bitsfusion.errors import InputError
from bitsfusion.metrics.tifa.answers import TransformersAnswerer
from bitsfusion.metrics.tifa.choices import SentenceMatcher
from bitsfusion.metrics.tifa.files import (
    read_captions,
    read_image_paths,
    read_questions,
    write_image_paths,
)
from bitsfusion.metrics.tifa.score import Answered, Examiner, tifa_result

PUBLISHED = Path(__file__).parents[4] / "shared" / "data"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "is",
    "this",
    "a",
    "kite",
    "cup",
    "what",
    "red",
    "dark",
    "blue",
    "yes",
    "no",
]


def question(caption, text, choices, answer, kind, **more):
    entry = {"id": caption, "caption": f"caption {caption}", "question": text, "choices": choices, "answer": answer}
    return entry | {"element_type": kind, "element": answer} | more


ENTRIES = [
    question("a_1", "is this a kite?", ["yes", "no"], "yes", "object", coco_val_id="7"),
    question("a_1", "what color?", ["red", "blue"], "red", "color"),
    question("a_1", "how many?", ["1", "2"], "2", "counting"),
    question("b_2", "is this a cup?", ["yes", "no"], "yes", "object"),
]


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "questions.json").write_text(json.dumps(ENTRIES))
    return read_questions(tmp_path / "questions.json")


def test_the_published_result(questions):
    answers = [
        Answered(item, free, choice)
        for item, (free, choice) in zip(
            questions, [("yes", "yes"), ("dark red", "red"), ("0", "1"), ("no", "no")], strict=True
        )
    ]
    result = tifa_result(answers)
    assert list(result) == ["tifa_average", "tifa_stdev", "accuracy_by_type", "question_details", "caption_scores"]
    assert result["caption_scores"] == {"a_1": pytest.approx(2 / 3), "b_2": 0}
    assert result["tifa_average"] == pytest.approx(1 / 3)  # of captions; over questions it would be a half
    assert result["tifa_stdev"] == pytest.approx(np.std([2 / 3, 0], ddof=1))
    assert result["accuracy_by_type"] == {"object": 0.5, "color": 1, "counting": 0}
    assert result["question_details"]["a_1"]["is this a kite?"] == ENTRIES[0] | {
        "free_form_vqa": "yes",
        "multiple_choice_vqa": "yes",
        "scores": 1,
    }
    assert [len(entries) for entries in result["question_details"].values()] == [3, 1]
    json.dumps(result)


def test_a_question_asked_twice_counts_twice(questions):
    twice = [Answered(questions[0], "yes", "yes"), Answered(questions[0], "no", "no")]
    result = tifa_result(twice)
    assert result["tifa_average"] == 0.5 and result["tifa_stdev"] is None
    assert result["question_details"]["a_1"]["is this a kite?"]["free_form_vqa"] == "no"
    with pytest.raises(InputError, match="no answers"):
        tifa_result([])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
def test_the_published_files():
    captions = read_captions(PUBLISHED / "tifa_v1.0_text_inputs.json")
    assert len(captions) == len({caption.id for caption in captions}) == 4081
    questions = read_questions(PUBLISHED / "tifa_sample_question_answers.json")
    sample = {caption.id for caption in read_captions(PUBLISHED / "tifa_sample_text_inputs.json")}
    assert {question.id for question in questions} == sample
    # What the authors' own sample result says of these questions: three of them are answered wrongly.
    wrong = {"are there dogs?": "no", "are there two dogs?": "no", "how many dogs are in the picture?": "1"}
    right = [Answered(q, wrong.get(q.question, q.answer), wrong.get(q.question, q.answer)) for q in questions]
    result = tifa_result(right)
    assert result["tifa_average"] == 0.8125
    assert result["tifa_stdev"] == pytest.approx(0.2651650429449553)
    assert result["accuracy_by_type"]["animal/human"] == 0.75
    assert result["accuracy_by_type"]["counting"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "maybe"}, "entry 1: Value error|entry 1: answer: got 'maybe'"),
        ({"choices": []}, "entry 1: choices"),
        ({"question": None}, "entry 1: question"),
    ],
)
def test_refuses_what_is_no_question(change, message, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([ENTRIES[0], ENTRIES[1] | change]))
    with pytest.raises(InputError, match=message) as caught:
        read_questions(tmp_path / "q.json")
    assert "\n" not in str(caught.value)


def test_refuses_other_files(tmp_path):
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(InputError, match="no list of entries"):
        read_captions(tmp_path / "q.json")
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(InputError, match=r"wanted .id: image file."):
        read_image_paths(tmp_path / "q.json")


def test_where_images_are(tmp_path):
    images = {"a_1": tmp_path / "in" / "0.png", "b_2": tmp_path.parent / "1.png"}
    write_image_paths(tmp_path / "images.json", images)
    assert json.loads((tmp_path / "images.json").read_text())["a_1"] == "in/0.png"
    assert read_image_paths(tmp_path / "images.json") == images


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", bos_token="[CLS]")
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=20, **special)


TEXT = dict(vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture(scope="module")
def blip(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    torch.manual_seed(0)
    tokens = dict(bos_token_id=2, sep_token_id=3, pad_token_id=0, eos_token_id=3)
    config = BlipConfig(
        text_config={**TEXT, **tokens, "encoder_hidden_size": 16, "max_position_embeddings": 64},
        vision_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
    )
    BlipForQuestionAnswering(config).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vilt(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vilt")
    torch.manual_seed(0)
    names = {0: "yes", 1: "no", 2: "dark red"}
    config = ViltConfig(
        **TEXT,
        image_size=32,
        patch_size=16,
        max_position_embeddings=20,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    ViltForQuestionAnswering(config).save_pretrained(folder)
    ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(BertConfig(**TEXT, max_position_embeddings=20)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


def test_blip_generates_the_models_own_answer(blip, pictures):
    answerer = TransformersAnswerer.from_pretrained(blip)
    answer = answerer.answer(pictures[0], "is this a kite?")
    pixels = BlipImageProcessorPil.from_pretrained(blip)(images=[pictures[0]], return_tensors="pt")["pixel_values"]
    tokens = torch.tensor([[2, 4, 5, 6, 7, 1, 3]])  # [CLS] is this a kite [UNK] [SEP]
    generated = answerer.model.generate(input_ids=tokens, pixel_values=pixels, max_length=50)
    assert answer == answerer.tokenizer.decode(generated[0], skip_special_tokens=True)
    assert answer == answerer.answer(pictures[0], "is this a kite?") and answerer.name == blip


def test_vilt_gives_its_likeliest_answer(vilt, pictures):
    answerer = TransformersAnswerer.from_pretrained(vilt)
    tokens = torch.tensor([[2, 9, 10, 3]])
    seen = set()
    for picture in pictures:
        pixels = ViltImageProcessorPil.from_pretrained(vilt)(images=[picture], return_tensors="pt")
        with torch.no_grad():
            logits = answerer.model(input_ids=tokens, **pixels).logits[0]
        assert answerer.answer(picture, "what red") == {0: "yes", 1: "no", 2: "dark red"}[int(logits.argmax())]
        seen.add(round(float(logits[0]), 4))
    assert len(seen) == 3  # images matter


def test_other_models_are_refused(encoder, tmp_path):
    with pytest.raises(InputError, match=r"visual question answering \(blip, vilt\): a model of type bert"):
        TransformersAnswerer.from_pretrained(encoder)
    for load in (TransformersAnswerer.from_pretrained, SentenceMatcher.from_pretrained):
        with pytest.raises(InputError, match="TIFA: got") as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_answers_are_mapped_to_the_nearest_choice(encoder):
    matcher = SentenceMatcher.from_pretrained(encoder)
    assert matcher.choose("no", ["yes", "no"]) == "no"
    vectors = matcher.embed(["dark red", "red", "blue kite"])
    tokens = matcher.tokenizer(["dark red"], return_tensors="pt")
    with torch.no_grad():
        alone = matcher.model(**tokens).last_hidden_state[0].mean(0)
    assert torch.allclose(vectors[0], alone / alone.norm(), atol=1e-5)  # padding in the batch changes nothing
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))
    nearest = ["red", "blue kite"][int((vectors[1:] @ vectors[0]).argmax())]
    assert matcher.choose("dark red", ["red", "blue kite"]) == nearest
    assert matcher.choose("dark red", ["blue kite", "red"]) == nearest


def test_from_images_to_the_result(vilt, encoder, pictures, questions):
    examiner = Examiner(TransformersAnswerer.from_pretrained(vilt), SentenceMatcher.from_pretrained(encoder))
    answers = examiner.ask(pictures[0], questions[:3]) + examiner.ask(pictures[1], questions[3:])
    assert all(item.choice in item.question.choices for item in answers)
    result = tifa_result(answers)
    expected = np.mean([np.mean([item.score for item in answers[:3]]), answers[3].score])
    assert result["tifa_average"] == pytest.approx(expected)
    assert examiner.settings() == {"vqa": vilt, "choices": encoder}
