"""A budget of true bits: entropies instead of the number of levels."""

from __future__ import annotations

import numpy as np
import pytest

from bitsfusion.errors import InputError
from bitsfusion.numerics import level_bits
from bitsfusion.recipe import assign
from bitsfusion.sensitivity.table import SensitivityRow, SensitivityTable

WEIGHTS = {f"layer.{i}": 1000 * (i + 1) for i in range(6)}
FIXED = {"conv_in": 30, "conv_out": 20}
TIME = {"time": 200}
FEATURES = 10


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(3)
    rows = [
        SensitivityRow(layer=name, bits=bits, mse=float(rng.uniform(1, 9) / 4**bits), seconds=0)
        for name in WEIGHTS
        for bits in (1, 2, 3)
    ]
    return SensitivityTable(
        model="test",
        source_sha256=None,
        method="noise_error",
        settings={},
        layers=WEIGHTS,
        removed=TIME,
        first_last=FIXED,
        feature_values=FEATURES,
        rows=rows,
    )


def entropies(factor=0.93):
    return {name: [factor * level_bits(bits) for bits in range(1, 9)] for name in WEIGHTS | FIXED | TIME}


def true_bits(recipe, entropies):
    """Counted anew, by hand."""
    kept = sum(entropies[name][b - 1] * recipe.weights[name] for name, b in recipe.bits.items())
    return (kept + 16 * recipe.feature_values) / sum(recipe.weights.values())


@pytest.mark.parametrize("strategy", ["paper", "optimal"])
@pytest.mark.parametrize("keep_time_layers", [False, True])
def test_the_budget_holds_in_true_bits(table, strategy, keep_time_layers):
    rng = np.random.default_rng(1)
    rates = {
        name: [r * level_bits(b) for b in range(1, 9)] for name in WEIGHTS | FIXED | TIME for r in [rng.uniform(0.6, 1)]
    }
    for target in (2.0, 2.6):
        recipe = assign(table, target, strategy, entropies=rates, keep_time_layers=keep_time_layers)
        counted = true_bits(recipe, rates)
        assert counted <= target
        assert recipe.provenance["true_bits"] == pytest.approx(counted)
        assert recipe.provenance["budget"] == "entropy"
        assert recipe.average_bits > counted  # more levels fit than a count of levels would allow


def test_levels_that_are_all_equally_likely_change_nothing(table):
    plain, same = assign(table, 2.3), assign(table, 2.3, entropies=entropies(1.0))
    assert same.bits == plain.bits
    assert same.provenance["true_bits"] == pytest.approx(plain.average_bits, abs=1e-5)


def test_what_costs_less_on_disk_gets_more_bits(table):
    """One layer's levels are nearly all zero: bits there are nearly free."""
    cheap = entropies()
    cheap["layer.5"] = [0.01 * bits for bits in range(1, 9)]
    with_cheap, without = assign(table, 1.9, entropies=cheap), assign(table, 1.9, entropies=entropies())
    assert with_cheap.bits["layer.5"] == 8 > without.bits["layer.5"]
    assert with_cheap.provenance["total_error"] < without.provenance["total_error"]


def test_a_layer_without_entropy(table):
    """A layer of zeros costs nothing at any width; that must not upset the search."""
    rates = entropies() | {"layer.0": [0.0] * 8}
    assert true_bits(assign(table, 2.0, entropies=rates), rates) <= 2.0


@pytest.mark.parametrize("broken", [{}, {"layer.2": [1.0, 2.0]}], ids=["none", "two widths"])
def test_refuses(table, broken):
    rates = {name: value for name, value in entropies().items() if name != "layer.2"} | broken
    with pytest.raises(InputError, match=r"no entropies at 1 to 8 bits of layer\.2"):
        assign(table, 2.0, entropies=rates)
