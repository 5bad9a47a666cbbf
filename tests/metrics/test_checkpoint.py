"""A broken checkpoint is one line, whatever is broken in it; transformers alone would fill up most of it at random."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from bitsfusion.embedded import SCORER_FOLDER
from bitsfusion.errors import InputError
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.metrics.fid import load_features
from bitsfusion.metrics.geneval.colors import ClipColors

WEIGHT = "visual_projection.weight"


def lack_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[WEIGHT]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[WEIGHT] = tensors[WEIGHT][:3].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_the_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def mistype_a_field(folder):
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(values))


BROKEN = {
    "lacks a weight": (lack_a_weight, rf"\(no weight {WEIGHT}\)"),
    "a weight of another shape": (cut_a_weight, rf"\(weight {WEIGHT} is \[3, 96\], not \[64, 96\]\)"),
    "half-written weights": (cut_the_file, "header"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "a list for a config": (lambda folder: (folder / "config.json").write_text("[]"), "must be a mapping"),
    "a field of another type": (mistype_a_field, "hidden_size"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer has no words"),
    "no image processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "image processor"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses(name, tmp_path):
    broken, line = BROKEN[name]
    folder = shutil.copytree(SCORER_FOLDER, tmp_path / "clip")
    ClipScorer.from_pretrained(folder)
    broken(folder)
    with pytest.raises(InputError, match=f"CLIP scorer: got .*, wanted a CLIP model .*{line}") as caught:
        ClipScorer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [ClipColors.from_pretrained, lambda folder: load_features(f"clip:{folder}")])
def test_what_loads_a_clip_refuses_as_well(load, tmp_path):
    folder = shutil.copytree(SCORER_FOLDER, tmp_path / "clip")
    lack_a_weight(folder)
    with pytest.raises(InputError, match=f"no weight {WEIGHT}"):
        load(str(folder))
