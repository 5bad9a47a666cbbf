"""The cheapest measurements: every layer's noise error to first order, all at once, from backward passes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.architectures.registry import denoiser_of
from bitsfusion.calibration.alone import calibrated_alone
from bitsfusion.calibration.layer import CalibratedLayer
from bitsfusion.calibration.trajectories import trajectories
from bitsfusion.data.batches import TrainingData
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.samples import GuidedSamples, NoisySamples
from bitsfusion.nn.scale import layer_scale
from bitsfusion.numerics import ScaleInit, rounded
from bitsfusion.sensitivity.noise import guided_latents, noisy_latents
from bitsfusion.sensitivity.settings import CalibratedSettings, FirstOrderOptions, JacobianSettings
from bitsfusion.sensitivity.table import MEASURED_BITS, Candidate, SensitivityRow

_Change: TypeAlias = Callable[[int], tuple[Tensor, Tensor | None]]  # bits -> of weight and bias


class Jacobian:
    """Estimates ||J dw||^2, the squared change of the predicted noise to first order in a layer's rounding error dw.

    At the full-precision model itself the gradient of any distance to it is zero, and so is its first-order
    change; what is left is the Gauss-Newton term. For a random direction v with independent standard normal
    entries, E[(v . J dw)^2] = ||J dw||^2 (Hutchinson's estimator). One backward pass of v . eps gives d, the
    gradient at the output of every layer, and there v . J dw = <d, dw x> for the layer's own input x: an inner
    product for each sample, layer and bit width, so that a batch of n samples is n independent draws. Weights
    need no gradient.

    dw is what rounding by the weights alone changes, or what is left after a calibration of the layer by itself, its
    bias counted in.

    Differs from the paper: nothing is trained and no image is drawn (`paper.PaperMethod`). Differs from
    `noise_error.NoiseError`: to first order, and with a relative standard error of about sqrt(2 / samples).
    """

    def __init__(self, pipeline: Any, settings: FirstOrderOptions, data: TrainingData) -> None:
        self.pipeline, self.unet = pipeline, pipeline_denoiser(pipeline)
        self.settings = settings
        inputs = noisy_latents(pipeline, data, 0, settings.samples, settings.seed, spread=True)
        self.inputs = guided_latents(pipeline, inputs, settings.guidance)

    def rows(self, candidates: Sequence[Candidate]) -> Generator[SensitivityRow, None, None]:
        """A row for each of `candidates`; the time is shared evenly among them."""
        started = time.perf_counter()
        errors = self.errors([candidate.layer for candidate in candidates])
        seconds = round((time.perf_counter() - started) / max(1, len(candidates)), 6)
        for layer, bits in candidates:
            yield SensitivityRow(layer=layer, bits=bits, mse=errors[layer, bits], seconds=seconds)

    def errors(self, layers: Sequence[str]) -> dict[tuple[str, int], float]:
        """The mean squared change of the predicted noise of each layer at 1, 2 and 3 bits, by (layer, bits)."""
        changes = self._changes(list(dict.fromkeys(layers)))
        sums = {(name, bits): 0.0 for name in changes for bits in MEASURED_BITS}
        generator = torch.Generator("cpu").manual_seed(self.settings.seed)
        for part in self.inputs.split(self.settings.batch_size):
            for key, products in self._products(part, changes, generator).items():
                sums[key] += float(products.double().square().sum())
        values = self.inputs.samples.noisy.numel()
        return {key: total / values for key, total in sums.items()}

    def _changes(self, names: Sequence[str]) -> dict[str, _Change]:
        """For each layer what its rounding changes, by bits."""
        layers = {name: self.unet.get_submodule(name) for name in names}
        settings = self.settings
        if isinstance(settings, CalibratedSettings):
            was = self.unet.training
            self.unet.eval()
            calls = trajectories(self.pipeline, self.unet, settings.prompts, settings.calibration)
            found = calibrated_alone(self.unet, names, MEASURED_BITS, calls, settings.calibration)
            self.unet.train(was)
            return {name: _calibrated(layer, name, found) for name, layer in layers.items()}
        assert isinstance(settings, JacobianSettings)
        return {name: _rounded(layer, name, settings.scale_init) for name, layer in layers.items()}

    def _products(
        self, part: GuidedSamples, changes: Mapping[str, _Change], generator: torch.Generator
    ) -> dict[tuple[str, int], Tensor]:
        """v . J dw of n samples, by candidate: [n], summed over the two guided predictions of a sample."""
        found: dict[tuple[str, int], Tensor] = {}

        def keep(name: str, layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
            for bits in MEASURED_BITS:
                change = _apply(layer, x, *changes[name](bits))
                each = (gradient * change).flatten(1).sum(1, dtype=torch.float32)
                each = each.view(-1, len(part)).sum(0)
                found[name, bits] = found[name, bits] + each if (name, bits) in found else each

        with _frozen(self.unet), torch.enable_grad(), contextlib.ExitStack() as hooks:
            for name in changes:
                layer = self.unet.get_submodule(name)

                def forward(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                    if output.requires_grad:
                        x = args[0].detach()
                        output.register_hook(lambda gradient: keep(name, module, x, gradient))

                hooks.callback(layer.register_forward_hook(forward).remove)
            both = part.both()
            conditioning = both.conditioning.map(_with_gradient)
            # Modulation follows from the time step alone: without a gradient there its layers would seem to do nothing.
            times = both.timesteps if denoiser_of(self.unet).timed else both.timesteps.float().requires_grad_()
            asked = NoisySamples(both.noisy.detach().requires_grad_(), times, conditioning)
            answer = part.combine(asked.predict(self.unet))
            sources = [asked.noisy, times, *conditioning.tensors.values()]
            sources = [source for source in sources if source.requires_grad]
            direction = torch.randn(answer.shape, generator=generator).to(answer.device, answer.dtype)
            torch.autograd.backward(answer, direction, inputs=sources)
        return found


def _with_gradient(tensor: Tensor) -> Tensor:
    """Lets hidden states take part in the backward pass; masks and ids cannot."""
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def _rounded(layer: Any, name: str, method: ScaleInit) -> _Change:
    weight: Tensor = layer.weight.detach()
    scales = {bits: layer_scale(name, weight, bits, method) for bits in MEASURED_BITS}
    return lambda bits: (rounded(weight, scales[bits], bits) - weight, None)


def _calibrated(layer: Any, name: str, found: Mapping[tuple[str, int], CalibratedLayer]) -> _Change:
    def change(bits: int) -> tuple[Tensor, Tensor | None]:
        made, weight = found[name, bits], layer.weight.detach()
        bias = None if made.bias is None else made.bias.to(weight) - layer.bias.detach()
        return made.weight.to(weight) - weight, bias

    return change


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output for input `x` with another weight and bias."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return functional.linear(x, weight, bias)


@contextlib.contextmanager
def _frozen(unet: nn.Module) -> Iterator[None]:
    """Takes weight gradients off `unet` inside, and puts it back as it was."""
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    unet.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
