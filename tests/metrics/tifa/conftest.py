"""The folders of tiny_vqa.py's models as fixtures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_vqa", Path(__file__).with_name("tiny_vqa.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def blip_folder(models, tmp_path_factory):
    return models.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def vilt_folder(models, tmp_path_factory):
    return models.save_vilt(tmp_path_factory.mktemp("vilt"))


@pytest.fixture(scope="session")
def bert_folder(models, tmp_path_factory):
    return models.save_bert(tmp_path_factory.mktemp("bert"))
