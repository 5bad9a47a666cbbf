"""Palettes: k-means against every partition of a few values; the recipe against every threshold."""

import itertools

import pytest
import torch

from bitsfusion.errors import InputError
from bitsfusion_lab.rivals.palettization import palette_recipe, palettize


def error(weight, made):
    return float((weight - made.dense()).square().sum())


@pytest.mark.parametrize("bits", [1, 2])
def test_each_value_takes_its_nearest_and_each_palette_entry_is_a_mean(bits):
    torch.manual_seed(bits)
    weight = torch.randn(64, 81)
    made = palettize(weight, bits)
    assert made.palette.shape == (2**bits,)
    nearest = (weight[..., None] - made.palette.float()).abs().argmin(-1)
    assert torch.equal(made.codes.long(), nearest)
    for code, value in enumerate(made.palette.float()):
        torch.testing.assert_close(weight[made.codes == code].mean(), value, rtol=0, atol=2e-3)


def test_two_clusters_are_the_best_ones():
    torch.manual_seed(3)
    weight = torch.randn(1, 60)
    values = weight.flatten().sort().values
    best = min(
        sum(float((part - part.mean()).square().sum()) for part in (values[:cut], values[cut:])) for cut in range(1, 60)
    )
    assert error(weight, palettize(weight, 1)) <= best * 1.01


def test_fewer_values_than_entries_are_kept_exactly():
    weight = torch.tensor([[0.5, -1.0, 0.5], [2.0, 2.0, -1.0]])
    assert torch.equal(palettize(weight, 4).dense(), weight)


def test_more_bits_err_less():
    torch.manual_seed(4)
    weight = torch.randn(32, 32)
    errors = [error(weight, palettize(weight, bits)) for bits in (1, 2, 4, 6, 8)]
    assert all(more > less for more, less in itertools.pairwise(errors))


PSNR = {"a": {1: 10.0, 2: 20.0, 4: 30.0, 6: 40.0, 8: 50.0}, "b": {1: 25.0, 2: 26.0, 4: 35.0, 6: 45.0, 8: 55.0}}
WEIGHTS = {"a": 100, "b": 300}


@pytest.mark.parametrize(("target", "bits"), [(1.0, (1, 1)), (1.75, (4, 1)), (2.5, (4, 2)), (8.0, (8, 8))])
def test_the_highest_threshold_within_the_budget(target, bits):
    chosen, threshold = palette_recipe(PSNR, WEIGHTS, target)
    assert (chosen["a"], chosen["b"]) == bits
    assert all(PSNR[name][chosen[name]] >= threshold or chosen[name] == 8 for name in chosen)


def test_a_budget_below_one_bit_is_refused():
    with pytest.raises(InputError, match=r"0\.5 bits"):
        palette_recipe(PSNR, WEIGHTS, 0.5)
