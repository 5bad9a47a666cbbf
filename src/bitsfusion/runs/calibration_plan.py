"""What a calibration will cost before it runs: memory, operations and hours, from a denoiser's config.json alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bitsfusion.architectures.registry import denoiser_called
from bitsfusion.calibration.blocks import MAX_LAYERS
from bitsfusion.calibration.moments import DOUBLE_UP_TO, ROWS
from bitsfusion.calibration.playback import MEMORY_BYTES
from bitsfusion.calibration.scales import FACTORS, STRONGEST
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.devices import resolve
from bitsfusion.diffusion.denoise import denoise
from bitsfusion.pipelines.planned import planned_denoiser
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.training.plan import count_forward

_MATRICES = 2  # of n x n at the same time: the moments and their factor
_WEIGHTS = 6  # of the size of a layer's weights at the same time: targets, levels, errors and products
_RATE_SIZE, _ROUNDS = 1536, 3


@dataclass(frozen=True)
class CalibrationPlan:
    """The cost of a calibration.

    Fields:
        layers: that are solved.
        widest: the most inputs of one output; its second moments are the largest matrix.
        forward_flops: of sampling, and of the blocks' runs on both sides.
        moment_flops, solving_flops: of gathering second moments; of factors, targets, codes and sweeps.
        bytes: by part, at the worst moment.
        flops_per_second: of float32 matrix products, as measured or given.
        hours: all operations at that rate.
    """

    layers: int
    widest: int
    forward_flops: float
    moment_flops: float
    solving_flops: float
    bytes: dict[str, int]
    flops_per_second: float
    hours: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "bytes_together": sum(self.bytes.values())}


def pipeline_calibration_plan(model: str, job: CalibrationJob) -> CalibrationPlan:
    """The plan of a pipeline's denoiser on this machine's device; reads its configs, no weights.

    Raises:
        InputError: no such model, or a denoiser that is not known.
    """
    planned = planned_denoiser(model)
    return plan_calibration(planned.config, planned.tokens, job.settings, matrix_rate(resolve(job.device)))


@dataclass(frozen=True)
class _Layer:
    """Inputs of one output, outputs, groups, and input vectors of one latent."""

    columns: int
    outputs: int
    groups: int
    rows: int


def plan_calibration(
    model_config: Mapping[str, Any], tokens: int, settings: CalibrationSettings, flops_per_second: float
) -> CalibrationPlan:
    """Counts what `calibrate` does with every Linear and Conv2d layer of a denoiser; nothing is computed.

    Args:
        model_config: its config.json.
        tokens: of a prompt.
        settings: as they will be used.
        flops_per_second: of float32 matrix products; see `matrix_rate`. Float64 is taken as half as fast.
    """
    size = settings.size or denoiser_called(model_config).latent_size(model_config)
    layers, parameters = _layers(model_config, size, tokens)
    latents = settings.samples * settings.steps * 2
    # Every group of layers runs its block up to itself, on both sides; then the block runs once more to carry on.
    passes = 1 + 2 * ((MAX_LAYERS + 1) / 2 + 1)
    forward = count_forward(model_config, size, tokens).flops * latents * passes
    moments = solving = 0.0
    for layer in layers:
        rows = min(layer.rows * latents * 3 / 2, settings.rows)
        n, out, weight = float(layer.columns), float(layer.outputs), 2.0 if layer.columns <= DOUBLE_UP_TO else 1.0
        moments += weight * layer.groups * 2 * rows * n * (n + out / layer.groups)
        products = 2 + 1 + 2 * 2 + 2 * settings.sweeps  # targets, columns, targets' and levels' moments, descent
        search = 2 * len(FACTORS) * min(n, STRONGEST) ** 2
        solving += weight * layer.groups * (n**3 / 3 + out / layer.groups * (products * n**2 + search))
    widest = max(layers, key=lambda layer: layer.columns)
    width = 8 if widest.columns <= DOUBLE_UP_TO else 4
    sizes = [layer.columns * layer.outputs for layer in layers]
    held = {
        "weights": 4 * parameters,
        "levels found": parameters,
        "copy of a block": 4 * max(sum(sizes[place : place + MAX_LAYERS]) for place in range(len(sizes))),
        "activations kept": MEMORY_BYTES * 2,
        "matrices": width * _MATRICES * widest.columns**2,
        "rows": width * _WEIGHTS * widest.columns * widest.outputs + 2 * 4 * ROWS * widest.columns,
    }
    hours = (forward + moments + solving) / flops_per_second / 3600
    return CalibrationPlan(
        len(layers), widest.columns, forward, moments, solving, held, flops_per_second, round(hours, 3)
    )


def matrix_rate(device: torch.device) -> float:
    """Float32 operations a second of matrix products on a device, the best of some rounds."""
    one = torch.randn(_RATE_SIZE, _RATE_SIZE, device=device)
    best = 0.0
    for _ in range(1 + _ROUNDS):  # the first one warms up
        began = time.perf_counter()
        float((one @ one).sum())  # waits for the device
        best = max(best, 2 * _RATE_SIZE**3 / (time.perf_counter() - began))
    return best


def _layers(model_config: Mapping[str, Any], size: int, tokens: int) -> tuple[list[_Layer], int]:
    """Every layer's shape, and the model's parameters."""
    family, found = denoiser_called(model_config), []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = family.build(model_config, "cpu")
        sample, conditioning = family.example(model_config, 1, size, tokens)

        def note(layer: Any, inputs: Any, output: Any) -> None:
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            outputs = len(layer.weight)
            found.append(_Layer(layer.weight[0].numel(), outputs, groups, output.numel() // outputs))

        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.register_forward_hook(note)
        denoise(model, sample, torch.zeros(1), conditioning)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    return found, parameters
