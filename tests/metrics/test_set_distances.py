"""FID, SSIM and LPIPS against formulas and second ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage
from torch import nn

from bitsfusion.errors import InputError
from bitsfusion.metrics.fid import FrechetDistance, load_features
from bitsfusion.metrics.lpips import Lpips
from bitsfusion.metrics.structure import ssim


class Means(nn.Module):
    """Four numbers an image: means of its quarters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2)
        return quarters.mean(1).reshape(-1, 4)


class Distance(nn.Module):
    """Mean absolute difference, as a network of two batches."""

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return (images - others).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def script(module: nn.Module, path) -> str:
    torch.jit.script(module).save(str(path))
    return str(path)


def test_frechet_distance_is_the_formula(images, tmp_path):
    others = images[:, ::-1] // 2 + 40
    features = load_features(script(Means(), tmp_path / "means.pt"))
    distance = FrechetDistance(features, [others])
    found = distance(images[i : i + 7] for i in range(0, 40, 7))

    def statistics(array):
        values = array.reshape(40, 2, 8, 2, 8, 3).mean((2, 4, 5)).reshape(40, 4) / 255
        return values.mean(0), np.cov(values, rowvar=False)

    (mean, covariance), (mean2, covariance2) = statistics(images), statistics(others)
    root = linalg.sqrtm(covariance @ covariance2).real
    wanted = np.sum((mean - mean2) ** 2) + np.trace(covariance + covariance2 - 2 * root)
    assert features.width == 4
    assert found == pytest.approx(wanted, rel=1e-4)
    assert FrechetDistance(features, [images])([images]) == pytest.approx(0, abs=1e-6)


class Learned(nn.Module):
    """A float32 network with parameters, as an exported Inception is: it takes no other dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images.float() / 255).mean((2, 3))


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_features_have_the_dtype_of_their_network(images, tmp_path, half):
    torch.manual_seed(0)
    network = Learned()
    path = script(network, tmp_path / "learned.pt")
    if half:
        path = script(nn.Sequential(Learned(), Rounded()), tmp_path / "rounded.pt")
    features = load_features(path)
    found = features(images)
    assert found.dtype == torch.float64 and found.shape == (40, 5)
    if not half:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        assert torch.equal(found, network(pixels).double())
    distance = FrechetDistance(features, [images])
    assert distance([images // 2]) > distance([images]) == pytest.approx(0, abs=1e-4)


class Rounded(nn.Module):
    """To bfloat16."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.bfloat16)


def test_frechet_distance_of_clip_features(images):
    from bitsfusion.embedded import SCORER_FOLDER

    features = load_features(f"clip:{SCORER_FOLDER}")
    distance = FrechetDistance(features, [images])
    dark = distance([images // 8])
    assert dark > distance([images[::-1]]) == pytest.approx(0, abs=1e-4)


def test_one_image_is_no_set(images, tmp_path):
    features = load_features(script(Means(), tmp_path / "means.pt"))
    with pytest.raises(InputError, match="got a set of 1 images"):
        FrechetDistance(features, [images[:1]])
    with pytest.raises(InputError, match="got a set of 1 images"):
        FrechetDistance(features, [images])([images[:1]])


def test_the_reference_set_is_looked_at_once(images, tmp_path):
    looked = []

    def reference():
        looked.append(True)
        yield images

    distance = FrechetDistance(load_features(script(Means(), tmp_path / "means.pt")), reference())
    first = distance([images // 2])
    assert distance([images]) == pytest.approx(0, abs=1e-6)
    assert distance([images // 2]) == first > 0.01
    assert looked == [True]


def test_ssim_is_the_papers_formula(images):
    others = np.clip(images.astype(int) + 30, 0, 255).astype(np.uint8)

    def mean(array):  # a Gaussian window of 11 pixels
        return ndimage.gaussian_filter(array, (1.5, 1.5, 0), truncate=5 / 1.5, mode="mirror")

    a, b = images[0] / 255, others[0] / 255
    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    whole = ((2 * ma * mb + c1) * (2 * vab + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    values = ssim(images, others)
    assert values.shape == (40,)
    assert values[0] == pytest.approx(whole.mean(), abs=1e-6)
    assert ssim(images, images) == pytest.approx(np.ones(40))


def test_lpips_of_a_torchscript_file(images, tmp_path):
    lpips = Lpips.from_pretrained(script(Distance(), tmp_path / "distance.pt"))
    others = images[::-1].copy()
    wanted = np.abs(images.astype(float) - others).mean((1, 2, 3)) / 127.5
    assert lpips(images, others) == pytest.approx(wanted, rel=1e-5)
    assert lpips.name == "distance.pt"


class WholeMean(nn.Module):
    """One number for all pairs, as a loss has it."""

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return (images - others).abs().mean()


def test_lpips_needs_a_distance_of_each_pair(tmp_path):
    with pytest.raises(InputError, match=r"loss\.pt gives 1 numbers for 2 pairs of images"):
        Lpips.from_pretrained(script(WholeMean(), tmp_path / "loss.pt"))
    with pytest.raises(InputError, match=r"means\.pt is no TorchScript of two batches") as caught:
        Lpips.from_pretrained(script(Means(), tmp_path / "means.pt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_features, Lpips.from_pretrained])
def test_what_is_not_there_is_one_line(load, tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    for source in (str(tmp_path / "text.pt"), str(tmp_path / "none.pt")):
        with pytest.raises(InputError, match=r"text\.pt is no TorchScript|none\.pt, wanted") as caught:
            load(source)
        assert "\n" not in str(caught.value)


def test_networks_that_need_more_say_so():
    from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE, _TORCHVISION_AVAILABLE

    if _TORCHVISION_AVAILABLE or _TORCH_FIDELITY_AVAILABLE:
        pytest.skip("torchvision or torch-fidelity is here")
    with pytest.raises(InputError, match="inception needs torch-fidelity"):
        load_features("inception")
    with pytest.raises(InputError, match="alex needs torchvision"):
        Lpips.from_pretrained("alex")
