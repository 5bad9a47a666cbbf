"""Folders with the models of tests/tiny/tifa.py."""

from __future__ import annotations

import pytest

from ...tiny import tifa


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory):
    return tifa.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def vilt_folder(tmp_path_factory):
    return tifa.save_vilt(tmp_path_factory.mktemp("vilt"))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    return tifa.save_bert(tmp_path_factory.mktemp("bert"))
