from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from bitsfusion.errors import InputError
from bitsfusion.numerics import level_bits
from bitsfusion.recipe import assign, uniform
from bitsfusion.recipe.choices import choices_of
from bitsfusion.recipe.knapsack import least_error
from bitsfusion.recipe.threshold import bits_at, clip_bonus, scores
from bitsfusion.sensitivity.table import SensitivityRow, SensitivityTable

EPSILON = 1e-9


def table_of(numel: list[int], errors: list[list[float]], drops: list[float] | None = None) -> SensitivityTable:
    layers = {f"layer.{i}": n for i, n in enumerate(numel)}
    rows = [
        SensitivityRow(
            layer=name, bits=b + 1, mse=errors[i][b], clip_drop=drops[i] if drops and b == 2 else None, seconds=0
        )
        for i, name in enumerate(layers)
        for b in range(3)
    ]
    return SensitivityTable(
        model="test",
        source_sha256=None,
        method="noise_error",
        settings={},
        layers=layers,
        removed={"time": 200},
        first_last={"conv_in": 30, "conv_out": 20},
        feature_values=10,
        rows=rows,
    )


def random_table(layers: int, seed: int, clip: bool = False) -> SensitivityTable:
    rng = np.random.default_rng(seed)
    numel = [int(n) for n in rng.choice([4096, 12288, 16384, 36864, 73728, 147456], layers)]
    errors = np.exp(rng.normal(-6, 1.5, (layers, 1)) - 1.25 * np.arange(3) + rng.normal(0, 0.2, (layers, 3)))
    return table_of(numel, errors.tolist(), rng.normal(size=layers).tolist() if clip else None)


@st.composite
def tables(draw: st.DrawFn) -> SensitivityTable:
    """Error falls with bits, by any factor."""
    count = draw(st.integers(1, 12))
    numel = draw(st.lists(st.integers(1, 5000), min_size=count, max_size=count))
    errors = [
        [first, first * ratio, first * ratio * other]
        for first, ratio, other in draw(
            st.lists(
                st.tuples(st.floats(1e-6, 1), st.floats(0.05, 0.9), st.floats(0.05, 0.9)),
                min_size=count,
                max_size=count,
            )
        )
    ]
    drops = draw(st.none() | st.lists(st.floats(-0.1, 0.1), min_size=count, max_size=count))
    return table_of(numel, errors, drops)


def reachable(table: SensitivityTable, share: float) -> float:
    """A target that both strategies can meet: at a share of the way from one bit + bonus to 8 bits everywhere."""
    choices = choices_of(table)
    drops = table.column("clip_drop", 3)
    bonus = 0 if drops is None else clip_bonus(np.asarray(list(drops.values())))
    low = choices.average(np.ones(len(choices.names), dtype=np.int64) + bonus)
    return low + share * (choices.average(np.full(len(choices.names), 8)) - low)


@pytest.mark.parametrize("strategy", ["paper", "optimal"])
@given(table=tables(), share=st.floats(0, 1))
def test_average_is_at_most_the_target_and_within_one_layers_step(strategy, table, share):
    target = reachable(table, share)
    recipe = assign(table, target, strategy)
    assert recipe.average_bits <= target + EPSILON
    left = (target - recipe.average_bits) * sum(recipe.weights.values())
    raises = [
        (level_bits(recipe.bits[name] + 1) - level_bits(recipe.bits[name])) * numel
        for name, numel in table.layers.items()
        if recipe.bits[name] < 8
    ]
    # More bits mean less error in these tables down to 4 bits and extrapolated beyond: what fits would be taken.
    assert not raises or left < min(raises) * (1 + EPSILON) + EPSILON


@given(table=tables(), share=st.floats(0, 1))
def test_optimal_never_errs_more_than_paper_and_uniform(table, share):
    target = reachable(table, share)
    optimal = assign(table, target, "optimal")
    assert optimal.provenance["proven_optimal"]
    total = optimal.provenance["total_error"] * (1 - EPSILON)
    assert total <= assign(table, target, "paper").provenance["total_error"]
    if target <= uniform(table, 4).average_bits:  # beyond, the threshold alone may not get there
        assert total <= assign(table, target, "paper", fill_up=False).provenance["total_error"]
    for bits in range(1, 9):
        same = uniform(table, bits)
        if same.average_bits <= target:
            assert total <= same.provenance["total_error"]


@given(table=tables(), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_more_bits_never_hurt(table, shares):
    low, high = (reachable(table, share) for share in sorted(shares))
    errors = [assign(table, target, "optimal").provenance["total_error"] for target in (low, high)]
    assert errors[1] <= errors[0] * (1 + EPSILON)
    averages = [assign(table, target, "paper").provenance["average_before_fill"] for target in (low, high)]
    assert averages[0] <= averages[1] + EPSILON


@pytest.mark.parametrize("target", [1.8, 1.99, 3.0, 4.5])
@pytest.mark.parametrize("seed", range(3))
def test_optimal_is_what_integer_programming_finds(seed, target):
    choices = choices_of(random_table(25, seed))
    budget = choices.budget(target)
    bits, proven = least_error(choices, budget)
    layers, widths = choices.errors.shape
    unit = choices.error(bits) / 1e4
    result = milp(
        choices.errors.ravel() / unit,
        integrality=np.ones(layers * widths),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1),
            LinearConstraint(choices.costs.ravel()[None, :] / budget, -np.inf, 1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert proven and choices.cost(bits) <= budget
    assert choices.error(bits) == pytest.approx(result.fun * unit, rel=1e-6)


def test_optimal_of_a_whole_model_is_proven():
    """The embedded model's and SD-v1.5's number of layers."""
    for layers in (107, 256):
        table = random_table(layers, seed=layers)
        optimal, paper = (assign(table, 1.99, strategy) for strategy in ("optimal", "paper"))
        assert optimal.provenance["proven_optimal"]
        assert 1.985 < paper.average_bits <= 1.99
        assert 1.9895 < optimal.average_bits <= 1.99
        assert optimal.provenance["total_error"] < paper.provenance["total_error"]


def test_paper_by_hand():
    """Algorithm 1 on four layers, without filling up."""
    errors = [[8e-3, 4e-3, 2e-3], [8e-3, 4e-3, 2e-3], [1e-3, 1e-4, 1e-5], [9e-2, 8e-2, 7e-2]]
    table = table_of([1000, 8000, 1000, 1000], errors)
    choices = choices_of(table)
    # 1000^-.3 = .1259, 8000^-.3 = .0675: scores 1.01e-3 .504e-3 .252e-3 | .540e-3 .270e-3 .135e-3 | 1.26e-4 .. | > 8e-3
    assert bits_at(scores(choices, 0.3), 0.51e-3).tolist() == [2, 2, 1, 4]
    assert bits_at(scores(choices, 0.3), 0.55e-3).tolist() == [2, 1, 1, 4]
    assert bits_at(scores(choices, 0.0), 5e-3).tolist() == [2, 2, 1, 4]  # size does not count
    for wanted in ([2, 2, 1, 4], [2, 1, 1, 4]):
        target = choices.average(np.asarray(wanted))
        recipe = assign(table, target + 0.01, "paper", fill_up=False)
        assert [recipe.bits[f"layer.{i}"] for i in range(4)] == wanted
        assert recipe.average_bits == pytest.approx(target)
        assert bits_at(scores(choices, 0.3), recipe.provenance["threshold"]).tolist() == wanted
    assert recipe.provenance["filled"] == "off"


def test_clip_drop_gives_bits_above_its_percentiles():
    drops = np.arange(100.0)
    bonus = clip_bonus(drops)
    assert bonus[:90].sum() == 0
    assert bonus[90:95].tolist() == [1] * 5 and bonus[95:98].tolist() == [2] * 3 and bonus[98:].tolist() == [3] * 2
    table = table_of([100] * 100, [[1e-3, 5e-4, 1e-4]] * 99 + [[1.0, 1.0, 1.0]], drops.tolist())
    recipe = assign(table, 2.4, "paper", fill_up=False)
    given = recipe.provenance["clip_bonus"]
    assert given == {f"layer.{i}": int(bonus[i]) for i in range(90, 100)}
    assert recipe.bits["layer.99"] == 7  # 4, the most by threshold, and 3
    without = assign(table_of([100] * 100, [[1e-3, 5e-4, 1e-4]] * 100), 2.4, "paper")
    assert "no CLIP drop" in without.provenance["clip_bonus"]


def test_filling_up_raises_and_says_what():
    table = random_table(40, seed=5)
    plain, filled = (assign(table, 1.99, "paper", fill_up=on) for on in (False, True))
    assert plain.average_bits == pytest.approx(filled.provenance["average_before_fill"])
    assert plain.average_bits < filled.average_bits <= 1.99
    assert filled.provenance["total_error"] < plain.provenance["total_error"]
    changed = {n: [plain.bits[n], filled.bits[n]] for n in table.layers if plain.bits[n] != filled.bits[n]}
    assert filled.provenance["filled"] == changed
    assert all(after > before for before, after in changed.values())


def test_average_counts_as_appendix_h():
    table = table_of([1000], [[1e-2, 1e-3, 1e-4]])
    recipe = uniform(table, 1)
    by_hand = (math.log2(3) * 1000 + math.log2(257) * 50 + 16 * 10) / 1250
    assert recipe.average_bits == pytest.approx(by_hand)
    assert recipe.bits == {"layer.0": 1, "conv_in": 8, "conv_out": 8}
    assert recipe.removed == ["time"] and recipe.feature_values == 10 and recipe.target_bits is None
    kept = uniform(table, 1, keep_time_layers=True)
    assert kept.average_bits == pytest.approx((math.log2(3) * 1000 + math.log2(257) * 250) / 1250)
    assert kept.bits["time"] == 8 and kept.removed == [] and kept.feature_values == 0
    assert assign(table, 4.5, "optimal", keep_time_layers=True).bits["time"] == 8


def test_records_where_it_comes_from():
    table = random_table(20, seed=1)
    recipe = assign(table, 3.5, "optimal")
    assert recipe.source_sha256 == table.sha256()
    high = [name for name in table.layers if recipe.bits[name] > 3]
    assert high and recipe.provenance["extrapolated"] == high
    assert assign(table, 3.5, "optimal") == recipe


@pytest.mark.parametrize("strategy", ["paper", "optimal"])
def test_unreachable_targets_name_the_range(strategy):
    table = random_table(10, seed=0)
    low, high = uniform(table, 1).average_bits, uniform(table, 8).average_bits
    for target in (low - 0.01, high + 0.01, math.nan):
        with pytest.raises(InputError, match=rf"wanted {math.ceil(low * 1e4) / 1e4:.4f} to \d\.\d{{4}}"):
            assign(table, target, strategy)
    assert assign(table, low, strategy).average_bits == pytest.approx(low)
    assert assign(table, high, strategy).average_bits == pytest.approx(high)


def test_bonus_counts_into_the_reachable_range():
    table = random_table(40, seed=2, clip=True)
    lowest = uniform(table, 1).average_bits
    with pytest.raises(InputError, match="strategy paper"):
        assign(table, lowest + 1e-4, "paper")
    assert assign(table, lowest + 1e-4, "optimal").average_bits <= lowest + 1e-4


def test_refuses_unknown_strategies_and_missing_rows():
    table = random_table(8, seed=0)
    with pytest.raises(InputError, match=r"'best'.*paper, optimal"):
        assign(table, 2.0, "best")
    partial = table.model_copy(update={"rows": [row for row in table.rows if (row.layer, row.bits) != ("layer.3", 2)]})
    with pytest.raises(InputError, match=r"at 2 bits of layer\.3"):
        assign(partial, 2.0)
