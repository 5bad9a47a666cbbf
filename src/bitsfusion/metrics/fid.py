"""Frechet distance between the features of two sets of images (FID, Heusel et al. 2017), by torchmetrics.

The number depends on the features, on how images are resized and cropped, and on the two sets more than on the model:
all of them are part of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitsfusion.errors import InputError
from bitsfusion.metrics.clip_score import ClipScorer

INCEPTION = "inception"
CLIP_PREFIX = "clip:"

Batches = Iterable[npt.NDArray[np.uint8]]
"""Images in batches of [n, h, w, 3] uint8; the sizes may differ from batch to batch."""


@dataclass(frozen=True)
class Features:
    """What the distance is taken between.

    Fields:
        of: uint8 images [n, h, w, 3] to features [n, ...], in whatever dtype and on whatever device the network has.
        name: what results record.
        width: values an image.
    """

    of: Callable[[npt.NDArray[np.uint8]], Tensor]
    name: str
    width: int

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """The features of `images` ([n, h, w, 3] uint8): [n, width] float64 on the CPU, where sets are summed up."""
        return self.of(images).reshape(len(images), -1).cpu().double()


def load_features(source: str, device: str = "cpu") -> Features:
    """What the distance is taken between.

    `inception`: the 2048 features of the network that FID is published with (needs torch-fidelity, which fetches it);
    images are resized to 299 by that network's own bilinear filter. `clip:MODEL`: the projected image features of a
    CLIP model; another number than FID. Otherwise a TorchScript file from uint8 [n, 3, h, w] to [n, width].

    Raises:
        InputError: it is none of them, or what it needs is not here.
    """
    if source.startswith(CLIP_PREFIX):
        scorer = ClipScorer.from_pretrained(source.removeprefix(CLIP_PREFIX), device)
        return Features(scorer.image_features, source, int(scorer.model.config.projection_dim))
    if source == INCEPTION:
        return _inception(device)
    if not Path(source).is_file():
        raise InputError(f"FID features: got {source}, wanted {INCEPTION}, {CLIP_PREFIX}MODEL or a TorchScript file")
    try:
        network = torch.jit.load(source, map_location=device).eval()
        with torch.no_grad():
            width = network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device)).reshape(1, -1).shape[1]
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"FID features: {source} is no TorchScript of uint8 images: {reason}") from None
    return Features(_on_pixels(network, device), Path(source).name, int(width))


class FrechetDistance:
    """The squared distance of Gaussians with the features' means and covariances, to a set that is looked at once.

    Two images a set are the least there can be; a stable number takes thousands (the paper: 30 000).
    """

    def __init__(self, features: Features, reference: Batches) -> None:
        """Looks at the `reference` set.

        Raises:
            InputError: it has fewer than two images.
        """
        from torchmetrics.image.fid import FrechetInceptionDistance

        passed_on: Any = nn.Identity()
        passed_on.num_features = features.width  # torchmetrics' name
        self._metric = FrechetInceptionDistance(feature=passed_on, reset_real_features=False)
        self._features = features
        self._add(reference, real=True)

    def __call__(self, images: Batches) -> float:
        """The distance of a set, read once, in batches.

        Raises:
            InputError: it has fewer than two images.
        """
        self._metric.reset()
        self._add(images, real=False)
        return float(self._metric.compute())

    def _add(self, batches: Batches, real: bool) -> None:
        count = 0
        for batch in batches:
            self._metric.update(self._features(batch), real=real)
            count += len(batch)
        if count < 2:
            raise InputError(f"FID: got a set of {count} images, wanted at least two")


def _on_pixels(network: Callable[[Tensor], Tensor], device: str) -> Callable[[npt.NDArray[np.uint8]], Tensor]:
    """`network` of uint8 [n, 3, h, w] on `device`, given images as they are read."""

    @torch.no_grad()
    def features(images: npt.NDArray[np.uint8]) -> Tensor:
        return network(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(device))

    return features


def _inception(device: str) -> Features:
    from torchmetrics.image.fid import NoTrainInceptionV3
    from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE

    if not _TORCH_FIDELITY_AVAILABLE:
        raise InputError(
            f"FID features: {INCEPTION} needs torch-fidelity, which is not installed; "
            f"wanted it, {CLIP_PREFIX}MODEL or a TorchScript file"
        )
    network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(torch.device(device))
    return Features(_on_pixels(network, device), "Inception 2048 (torch-fidelity), bilinear to 299", 2048)
