from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertModel,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    ViltForQuestionAnswering,
)

from bitsfusion.errors import InputError
from bitsfusion.metrics.tifa.matcher import SentenceMatcher, matched
from bitsfusion.metrics.tifa.questions import TifaQuestion
from bitsfusion.metrics.tifa.scores import TifaScores, answered
from bitsfusion.metrics.tifa.vqa import vqa_model

from ...tiny import tifa

QUESTIONS = [
    "is this a cat ?",
    "what color is the dog ?",
    "cat ?",
    "how many of the red dog are there ?",
    "is this red",
]
NONE = [()] * len(QUESTIONS)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (len(QUESTIONS), 24, 24, 3), dtype=np.uint8)


def test_blip_answers_as_its_own_generate_does_one_question_at_a_time(blip_folder, images):
    vqa = vqa_model(blip_folder)
    answers = vqa.answer(images, QUESTIONS, NONE)
    model = BlipForQuestionAnswering.from_pretrained(blip_folder).eval()
    for image, question, answer in zip(images, QUESTIONS, answers, strict=True):
        pixels = vqa.image_processor(images=[image], input_data_format="channels_last", return_tensors="pt")
        tokens = vqa.tokenizer(question, return_tensors="pt")
        words = model.generate(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels, max_length=50
        )
        assert answer == vqa.tokenizer.decode(words[0], skip_special_tokens=True)
    assert len(set(answers)) > 1 and all("[" not in answer for answer in answers)


def test_vilt_answers_with_the_likeliest_label_whatever_the_batch(vilt_folder, images):
    vqa = vqa_model(vilt_folder)
    state = torch.get_rng_state()
    answers = vqa.answer(images, QUESTIONS, NONE)
    assert torch.equal(torch.get_rng_state(), state)
    model = ViltForQuestionAnswering.from_pretrained(vilt_folder).eval()
    for image, question, answer in zip(images, QUESTIONS, answers, strict=True):
        pixels = vqa.image_processor(images=[image], input_data_format="channels_last", return_tensors="pt")
        with torch.no_grad():
            logits = model(**pixels, **vqa.tokenizer(question, return_tensors="pt")).logits
        assert answer == tifa.LABELS[int(logits.argmax())]
    assert len(set(answers)) > 1


def test_long_questions_are_cut(blip_folder, vilt_folder, images):
    for folder in (blip_folder, vilt_folder):
        assert len(vqa_model(folder).answer(images[:1], ["is this a cat " * 20], [()])) == 1


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_matcher_is_the_cosine_of_mean_states(kind, tmp_path):
    folder = getattr(tifa, f"save_{kind}")(tmp_path)
    matcher = SentenceMatcher.from_pretrained(folder, batch_size=3)
    answers = ["pale green", "two red dog", "light"]
    choices = [("red", "green", "blue"), ("cat", "dog"), ("yes", "no", "pale", "red")]
    model = AutoModel.from_pretrained(folder).eval()

    def vector(text):
        with torch.no_grad():
            return model(**matcher.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [
        max(group, key=lambda choice: float(torch.cosine_similarity(vector(answer), vector(choice), dim=0)))
        for answer, group in zip(answers, choices, strict=True)
    ]
    assert matcher.nearest(answers, choices) == expected
    assert matcher.embed(["two red dog", "cat"])[1] == pytest.approx(matcher.embed(["cat"])[0], abs=1e-6)
    assert matcher.embed(["two " * 40]).shape == (1, 16)  # longer than the encoder reads
    assert matched(["green", "two", "pale red"], [choices[0], (), ("red",)], matcher) == ["green", "two", "red"]


def test_an_encoder_without_a_pooler_will_do(bert_folder, tmp_path):
    whole = SentenceMatcher.from_pretrained(bert_folder)
    for part in (BertModel.from_pretrained(bert_folder, add_pooling_layer=False), tifa.build_tokenizer()):
        part.save_pretrained(tmp_path)
    bare = SentenceMatcher.from_pretrained(tmp_path)
    assert torch.equal(bare.embed(["a cat"]), whole.embed(["a cat"]))


@pytest.mark.parametrize("kind", ["blip", "vilt"])
def test_from_folders_to_scores(kind, request, bert_folder, images):
    vqa = vqa_model(request.getfixturevalue(f"{kind}_folder"))
    matcher = SentenceMatcher.from_pretrained(bert_folder)
    ids = [f"c{place}" for place in range(3)]
    questions = [
        TifaQuestion(
            id=random.Random(place).choice(ids),
            caption="",
            question=question,
            choices=("yes", "no") if question.startswith("is") else ("red", "blue", "two"),
            answer="yes" if question.startswith("is") else "red",
            element_type="object",
        )
        for place, question in enumerate(QUESTIONS)
    ]
    shown = images[[ids.index(question.id) for question in questions]]
    scores = TifaScores.from_answers(answered(shown, questions, vqa, matcher))
    for entry in (entry for entries in scores.question_details.values() for entry in entries.values()):
        assert entry.multiple_choice_vqa in entry.choices
        assert entry.free_form_vqa == vqa.answer(images[[ids.index(entry.id)]], [entry.question], [()])[0]


def test_refuses(blip_folder, vilt_folder, bert_folder, images, tmp_path):
    with pytest.raises(InputError, match="of type 'bert', wanted 'blip' or 'vilt'"):
        vqa_model(bert_folder)
    with pytest.raises(InputError, match="wanted a BLIP or ViLT model") as caught:
        vqa_model(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="wanted a text encoder") as caught:
        SentenceMatcher.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="1 questions"):
        vqa_model(vilt_folder).answer(images, ["cat ?"], [()])
    with pytest.raises(InputError, match="float64"):
        vqa_model(vilt_folder).answer(images / 255, QUESTIONS, NONE)


def test_refuses_a_blip_of_another_task_instead_of_random_weights(blip_folder, tmp_path):
    model = BlipForImageTextRetrieval(BlipForQuestionAnswering.from_pretrained(blip_folder).config)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"wanted a BlipForQuestionAnswering .*no weight text_decoder"):
        vqa_model(tmp_path)
