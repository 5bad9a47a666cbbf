"""The compiled scale search against the one in torch."""

import pytest
import torch

from bitsfusion.errors import InputError
from bitsfusion.kernels import scale as search
from bitsfusion.kernels.cpu.library import Missing
from bitsfusion.kernels.scale import exact_scale
from bitsfusion.numerics import ScaleInit, dequantize, initial_scale, quantize


def squared_error(rows: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    return (rows - dequantize(quantize(rows, scale, bits), scale)).double().square().sum(1)


@pytest.mark.parametrize("width", [2, 123, 1500])
@pytest.mark.parametrize("kind", ["normal", "heavy", "few", "sparse", "outlier", "small"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_same_optimum(bits: int, kind: str, width: int) -> None:
    generator = torch.Generator().manual_seed(100 * width + bits)
    rows = torch.randn(7, width, generator=generator)
    few = rows * (torch.rand(7, width, generator=generator) < 0.1)
    outlier = torch.cat([rows[:, 1:], torch.full((7, 1), 300.0)], 1)
    kinds = {"heavy": rows**3, "few": (2 * rows).round(), "sparse": few, "outlier": outlier, "small": 1e-12 * rows}
    rows = kinds.get(kind, rows)
    found, wanted = exact_scale(rows, bits), initial_scale(rows, bits, ScaleInit.EXACT)
    assert found.dtype == torch.float32 and found.shape == (7,)
    if width == 123 and kind in ("normal", "heavy"):  # others have equal events, or several scales as good
        assert torch.allclose(found, wanted, rtol=1e-6, atol=0)
    best = squared_error(rows, wanted, bits)
    assert torch.all(squared_error(rows, found, bits) <= best * (1 + 1e-5) + 1e-9 * rows.double().square().sum(1))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_zero_constant_tiny_and_single_weights(bits: int) -> None:
    assert torch.equal(exact_scale(torch.zeros(2, 5), bits), torch.zeros(2))
    for rows in (torch.full((1, 7), -0.3), torch.tensor([[0.7]]), torch.tensor([[1e-30, -1e-30]])):
        scale = exact_scale(rows, bits)
        assert torch.allclose(dequantize(quantize(rows, scale, bits), scale), rows, rtol=1e-5, atol=0)


def test_rows_do_not_depend_on_each_other_or_on_layout() -> None:
    rows = torch.randn(40, 33, generator=torch.Generator().manual_seed(0))
    together = exact_scale(rows, 2)
    assert torch.equal(together, torch.cat([exact_scale(row[None], 2) for row in rows]))
    assert torch.equal(together, exact_scale(rows.T.contiguous().T, 2))


def test_bad_rows_are_refused_as_ever() -> None:
    rows = torch.randn(2, 3)
    rows[0, 1] = float("nan")
    with pytest.raises(InputError, match="got 1 NaN or infinite values of 6"):
        exact_scale(rows, 2)
    with pytest.raises(InputError, match="wanted"):
        exact_scale(torch.zeros(3, 0), 2)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(3, 50)
    monkeypatch.setattr(search, "library", lambda: Missing("not built"))
    assert torch.equal(exact_scale(rows, 2), initial_scale(rows, 2, ScaleInit.EXACT))
