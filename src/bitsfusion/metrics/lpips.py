"""LPIPS (Zhang et al. 2018): a learned distance between pairs of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch

from bitsfusion.errors import InputError, reason

NETWORKS = ("alex", "vgg", "squeeze")


class Lpips:
    """A distance of each pair of images, 0 for equal ones.

    Args:
        network: takes two float32 [n, 3, h, w] in [-1, 1] and gives n distances in any shape.
        name: what results record.
    """

    def __init__(self, network: Any, name: str, device: str = "cpu", batch_size: int = 16) -> None:
        self.network = network
        self.name = name
        self.device = torch.device(device)
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, source: str, device: str = "cpu") -> Lpips:
        """`alex`, `vgg` or `squeeze` by torchmetrics, which needs torchvision for the network below; or a TorchScript
        file that takes the two batches, such as one traced from the published package.

        Raises:
            InputError: it is neither, or what it needs is not here.
        """
        if source in NETWORKS:
            return cls(_torchmetrics(source, device), f"torchmetrics {source}", device)
        if not Path(source).is_file():
            raise InputError(f"LPIPS: got {source}, wanted {', '.join(NETWORKS)} or a TorchScript file")
        try:
            network = torch.jit.load(source, map_location=device).eval()
            with torch.no_grad():
                pair = torch.zeros(2, 3, 64, 64, device=device)
                count = network(pair, pair).numel()
        except (RuntimeError, ValueError, AttributeError) as error:
            last = str(error).strip().splitlines()[-1]
            raise InputError(f"LPIPS: {source} is no TorchScript of two batches of images: {last}") from None
        if count != 2:  # a mean over the batch would pass for the distance of each
            raise InputError(f"LPIPS: {source} gives {count} numbers for 2 pairs of images, wanted a distance of each")
        return cls(network, Path(source).name, device)

    @torch.no_grad()
    def __call__(self, images: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """The distance of each pair ([n, h, w, 3] uint8 each): [n].

        Raises:
            InputError: shapes differ.
        """
        if images.shape != others.shape or images.ndim != 4:
            raise InputError(
                f"LPIPS: got shapes {list(images.shape)} and {list(others.shape)}, wanted two equal [n, h, w, 3]"
            )
        distances = np.zeros(len(images))
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            values = self.network(self._unit(images[batch]), self._unit(others[batch]))
            distances[batch] = values.reshape(-1).double().cpu().numpy()
        return distances

    def _unit(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device, torch.float32) / 127.5 - 1


def _torchmetrics(network: str, device: str) -> Any:
    from torchmetrics.utilities.imports import _TORCHVISION_AVAILABLE

    if not _TORCHVISION_AVAILABLE:
        raise InputError(f"LPIPS: {network} needs torchvision, which is not installed; wanted it or a TorchScript file")
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    kind = cast(Literal["alex", "vgg", "squeeze"], network)
    try:
        return _NoTrainLpips(net=kind).to(torch.device(device)).eval()
    except OSError as error:
        raise InputError(f"LPIPS: the weights of {network} could not be had: {reason(error)}") from None
