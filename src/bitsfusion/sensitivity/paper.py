"""The paper's measurement (section 3.2, Appendix B): one layer quantized and trained, its images compared."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from bitsfusion.data.batches import TrainingData
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.samples import NoisySamples
from bitsfusion.metrics.image_error import mse, psnr
from bitsfusion.nn.fake_quantized import FakeQuantizedLayer
from bitsfusion.nn.replace import fake_quantize_model, replace_module
from bitsfusion.pipelines.generation import generate_images
from bitsfusion.sensitivity.noise import noisy_latents
from bitsfusion.sensitivity.settings import PaperSettings

Images = npt.NDArray[np.uint8]
ImageDistance = Callable[[Images, Images], npt.NDArray[np.floating]]
"""A distance of each pair of images ([n, h, w, 3] uint8 twice -> [n]), such as LPIPS."""


class TextImageScorer(Protocol):
    """How well each image shows its prompt; `metrics.clip_score.ClipScorer` is one."""

    def score(self, images: Images, prompts: Sequence[str]) -> npt.NDArray[np.float64]:
        """[n] scores of n images and n prompts."""
        ...


class PaperMethod:
    """Measures candidates by the images they generate from the same prompts and seeds as the full-precision model.

    All candidates see the same training batches, so that their differences are the layers' own.
    """

    def __init__(
        self,
        pipeline: Any,
        settings: PaperSettings,
        data: TrainingData,
        scorer: TextImageScorer | None = None,
        lpips: ImageDistance | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.unet = pipeline_denoiser(pipeline)
        self.settings = settings
        self.scorer = scorer
        self.lpips = lpips
        self.examples = [self._example(data, step) for step in range(settings.iterations)]
        self.images = self.generate()
        self.clip = self._clip(self.images)

    def measure(self, name: str, bits: int) -> dict[str, float | None]:
        """{mse, psnr, lpips, clip_drop} of layer `name` alone at `bits`, after its training; the UNet is as before."""
        with _quantized_alone(self.unet, name, bits, self.settings) as layer:
            self._train(layer)
            images = self.generate()
        clip = self._clip(images)
        return {
            "mse": float(mse(images, self.images).mean()),
            "psnr": float(psnr(images, self.images).mean()),
            "lpips": None if self.lpips is None else float(self.lpips(images, self.images).mean()),
            "clip_drop": None if clip is None or self.clip is None else self.clip - clip,
        }

    def train_alone(self, name: str, bits: int) -> None:
        """Only the training of `measure`, for its cost; nothing is kept."""
        with _quantized_alone(self.unet, name, bits, self.settings) as layer:
            self._train(layer)

    def _train(self, layer: FakeQuantizedLayer) -> None:
        optimizer = torch.optim.AdamW([layer.weight, layer.scale], lr=self.settings.learning_rate, weight_decay=0.0)
        with torch.enable_grad():
            for inputs, wanted in self.examples:
                loss = functional.mse_loss(inputs.predict(self.unet), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def _example(self, data: TrainingData, step: int) -> tuple[NoisySamples, Tensor]:
        settings = self.settings
        inputs = noisy_latents(self.pipeline, data, step, settings.train_batch_size, settings.seed, spread=False)
        return inputs, inputs.predict(self.unet)

    def generate(self) -> Images:
        """The images of all prompts as the UNet is now: [n, h, w, 3] uint8."""
        s = self.settings
        seeds = [s.first_image_seed + k for k in range(len(s.prompts))]
        return generate_images(self.pipeline, s.prompts, seeds, s.steps, s.guidance, s.sampler, s.image_batch_size)

    def _clip(self, images: Images) -> float | None:
        return None if self.scorer is None else float(self.scorer.score(images, self.settings.prompts).mean())


@contextlib.contextmanager
def _quantized_alone(unet: Any, name: str, bits: int, settings: PaperSettings) -> Iterator[FakeQuantizedLayer]:
    """`unet` with a fake-quantized copy of layer `name` in its place, the only one that trains; undone afterwards."""
    own = unet.get_submodule(name)
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    unet.requires_grad_(False)
    replace_module(unet, name, copy.deepcopy(own))
    try:
        fake_quantize_model(unet, {name: bits}, settings.scale_init)
        layer = unet.get_submodule(name)
        layer.weight.requires_grad_(True)
        yield layer
    finally:
        replace_module(unet, name, own)
        for parameter in trainable:
            parameter.requires_grad_(True)
