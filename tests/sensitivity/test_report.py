"""Tables and figures of an analysis, from a table whose correlations are known."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import bitsfusion
from bitsfusion.architectures.registry import layers_to_assign, model_layers
from bitsfusion.io.texts import read_json
from bitsfusion.sensitivity.report import measured, tables, write_report
from bitsfusion.sensitivity.skewness import nearly_symmetric, skewness
from bitsfusion.sensitivity.table import SensitivityRow, SensitivityTable

from ..tiny.pipeline import build_one_block_pipeline
from ..tiny.transformers import build_transformer


@pytest.fixture(scope="module")
def unet():
    return build_one_block_pipeline().unet


@pytest.fixture(scope="module")
def table(unet):
    return table_of(unet)


def table_of(model):
    """MSE rising with the layer's place, PSNR falling exactly with it, a CLIP drop that follows neither."""
    layers = {name: layer.numel for name, layer in layers_to_assign(model).items()}
    rng = np.random.default_rng(0)
    rows = [
        SensitivityRow(
            layer=name, bits=bits, mse=(i + 1) / bits, psnr=-2.0 * (i + 1), clip_drop=float(rng.normal()), seconds=1.0
        )
        for i, name in enumerate(layers)
        for bits in (1, 2, 3)
    ]
    return SensitivityTable(
        model="tiny",
        source_sha256=None,
        method="paper",
        settings={},
        layers=layers,
        removed={},
        first_last={},
        feature_values=0,
        rows=rows,
    )


def test_tables(table, unet):
    found = tables(table, {name: layer.kind for name, layer in model_layers(unet).items()})
    assert measured(table) == ["mse", "psnr", "clip_drop"]
    assert set(found["between_metrics"]["1"]) == {"psnr", "clip_drop"}
    for bits in ("1", "2", "3"):
        assert found["between_metrics"][bits]["psnr"]["pearson"] == pytest.approx(-1)
    assert found["between_bits"]["mse"]["1-3"] == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    drops = [list(table.column("clip_drop", bits).values()) for bits in (2, 3)]
    assert found["between_bits"]["clip_drop"]["2-3"]["pearson"] == pytest.approx(np.corrcoef(drops)[0, 1])
    shortcut = found["kinds"]["shortcut"]
    assert shortcut["1"] == pytest.approx(3 * shortcut["3"]) and shortcut["layers"] >= 1
    assert sum(kind["layers"] for kind in found["kinds"].values()) == len(table.layers)


def test_layers_of_a_transformer_have_its_kinds(tmp_path):
    model = build_transformer("QwenImageTransformer2DModel")
    table = table_of(model)
    write_report(table, model, tmp_path)
    kinds = read_json(tmp_path / "tables.json")["kinds"]
    assert kinds.keys() == {"modulation", "attention", "feed-forward"}
    modulation = [name for name in table.layers if "_mod." in name]
    assert kinds["modulation"]["layers"] == len(modulation) == 2 * model.config.num_layers
    assert kinds["modulation"]["2"] == pytest.approx(np.mean([table.row(name, 2).mse for name in modulation]))
    assert "| modulation | " in (tmp_path / "tables.md").read_text()


def test_files(table, unet, tmp_path):
    files = write_report(table, unet, tmp_path)
    names = ["tables.json", "tables.md", "mse.png", "psnr.png", "clip_drop.png", "skewness.png"]
    assert [file.name for file in files] == names and sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    for file in files[2:]:
        with Image.open(file) as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 20)) > 10
    text = files[1].read_text()
    assert "| 1 | 1.000 | " in text  # magnitudes, as in the paper
    assert read_json(files[0])["sensitivity_sha256"] == table.sha256()


def test_without_images_there_is_no_table_1(table, unet, tmp_path):
    bare = table.model_copy(
        update={"rows": [row.model_copy(update={"psnr": None, "clip_drop": None}) for row in table.rows]}
    )
    files = write_report(bare, unet, tmp_path)
    assert [file.name for file in files] == ["tables.json", "tables.md", "mse.png", "skewness.png"]
    assert "Table 1" not in files[1].read_text()


def test_skewness_is_scipys(unet):
    found = skewness(unet)
    assert set(found) == set(layers_to_assign(unet))
    for name, value in found.items():
        wanted = stats.skew(unet.get_parameter(f"{name}.weight").detach().numpy().ravel().astype(np.float64))
        assert value == pytest.approx(wanted, abs=1e-9)
    assert nearly_symmetric({"a": 0.5, "b": -0.6, "c": 0.0, "d": 2.0}) == 0.5


def test_skewness_of_equal_weights_is_zero():
    unet = build_one_block_pipeline().unet
    name = next(iter(layers_to_assign(unet)))
    with torch.no_grad():
        unet.get_parameter(f"{name}.weight").fill_(0.25)
    assert skewness(unet)[name] == 0.0


def test_matplotlib_is_loaded_only_to_draw():
    """It takes a second: no module imports it when it is imported itself."""
    for path in Path(bitsfusion.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", ())] + [getattr(node, "module", None) or ""]
            assert not any(name.startswith("matplotlib") for name in names), path
