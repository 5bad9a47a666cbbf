"""What users would pick today: kept libraries, used as the benchmark uses them, where they are installed.

They quantize the model in bfloat16, as it is handed out. Images are drawn in float32 with the weights that each library
unpacks, in plain layers: unpacking again at every step would take it minutes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from bitsfusion.architectures.registry import model_layers
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.pipelines.load import whole_pipeline
from bitsfusion_lab.bench.layers import is_plain
from bitsfusion_lab.bench.methods import method_called
from bitsfusion_lab.reproduction.frame import Frame


@dataclass(frozen=True)
class Peer:
    """A method of `bitsfusion bench`, such as quanto-int2. Nothing is trained; every file of its folder counts."""

    method: str
    bits: int

    @property
    def name(self) -> str:
        """See `Subject`."""
        return f"peer_{self.method}"

    @property
    def trained(self) -> bool:
        """Made once."""
        return False

    @property
    def version(self) -> str | None:
        """The version of its library; None where it is not installed."""
        return method_called(self.method).version()

    def make(self, frame: Frame, seed: int) -> None:
        """See `Subject`."""
        method = method_called(self.method)
        folder = f"rivals/{self.name}"

        def work() -> None:
            source = whole_pipeline(frame.workspace.config.model).denoiser.folder
            with atomic_folder(frame.path / folder) as temporary:
                method.prepare(source, temporary, torch.bfloat16)

        inputs = {"method": self.method, "settings": method.settings, "version": self.version}
        frame.step(f"make-{self.name}", inputs, [folder], work)

    def made(self, frame: Frame, seed: int) -> dict[str, str]:
        """See `Subject`."""
        return frame.made(f"make-{self.name}")

    @torch.no_grad()
    def load(self, frame: Frame, seed: int) -> Any:
        """See `Subject`: loaded by the library's own loader, then unpacked."""
        method = method_called(self.method)
        loaded = method.load(frame.path / f"rivals/{self.name}", torch.bfloat16)
        dense = copy.deepcopy(frame.model)
        for name in model_layers(dense):
            layer, held = dense.get_submodule(name), loaded.get_submodule(name)
            layer.weight.copy_(held.weight if is_plain(held) else method.weight(held))
        return dense

    def size(self, frame: Frame, seed: int) -> tuple[float, int]:
        """See `Subject`: the weights' files; what is beside them (configs) is left out, as everywhere."""
        files = (frame.path / f"rivals/{self.name}").rglob("*.safetensors")
        return float(self.bits), sum(file.stat().st_size for file in files)
