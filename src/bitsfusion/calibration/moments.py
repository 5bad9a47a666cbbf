"""Second moments of a layer's inputs, and what its outputs should be given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.errors import InputError

_ROUNDING = 1e-6  # of an output's energy, below which its variance is the rounding of float32

DOUBLE_UP_TO = 4096
"""Columns up to which moments are summed in float64; above, memory and time count more."""

ROWS = 1024
"""Input vectors looked at together: those of a wide convolution take 94 MB."""


@dataclass(frozen=True)
class Moments:
    """Means over the input vectors of one layer; a grouped convolution has one set a group (g; otherwise 1).

    Fields:
        inputs: [g, n, n], E[x x^T] of the inputs, less their means' product where the layer has a bias.
        cross: [g, out / g, n], E[y x^T] of the outputs aimed at, likewise.
        input_mean: [g, n].
        output_mean: [g, out / g], the bias counted in.
        energy: [g, out / g], E[y^2], likewise.
        count: input vectors looked at.
    """

    inputs: Tensor
    cross: Tensor
    input_mean: Tensor
    output_mean: Tensor
    energy: Tensor
    count: int


class MomentSum:
    """Sums input vectors and the outputs aimed at, batch by batch, of layers that have the same inputs.

    Args:
        layers: by name: any number of Linear layers of one width, or one Conv2d.
        settings: how many rows, and whether guidance's mixtures are among them.
        calls: of the model, over which the rows are spread evenly.
    """

    def __init__(
        self, layers: Mapping[str, nn.Linear | nn.Conv2d], settings: CalibrationSettings | None = None, calls: int = 1
    ) -> None:
        settings = settings or CalibrationSettings()
        self._limit, self._guided = -(-settings.rows // calls), settings.guided_rows
        self._layers = layers
        first = next(iter(layers.values()))
        groups = first.groups if isinstance(first, nn.Conv2d) else 1
        columns, device = first.weight[0].numel(), first.weight.device
        outputs = sum(len(layer.weight) for layer in layers.values()) // groups
        dtype = torch.float64 if columns <= DOUBLE_UP_TO and device.type != "mps" else torch.float32
        self._inputs = torch.zeros(groups, columns, columns, dtype=dtype, device=device)
        self._cross = torch.zeros(groups, outputs, columns, dtype=dtype, device=device)
        self._input_sum = torch.zeros(groups, columns, dtype=dtype, device=device)
        self._output_sum = torch.zeros(groups, outputs, dtype=dtype, device=device)
        self._energy = torch.zeros(groups, outputs, dtype=dtype, device=device)
        self._count = 0

    def add_run(
        self, call: int, mixture: tuple[float, float] | None, inputs: Tensor, outputs: Sequence[Tensor]
    ) -> None:
        """Adds some rows of one run of the layers.

        Args:
            call: its number; the same rows are chosen every time.
            mixture: see `Call.guided`.
            inputs: what the layers were called with.
            outputs: what each should give, its bias counted in.

        Raises:
            InputError: see `add`.
        """
        mixture = mixture if self._guided else None
        first = next(iter(self._layers.values()))
        inputs, aimed = with_guided(inputs, mixture), [with_guided(output, mixture) for output in outputs]
        for places in _places(row_count(first, aimed[0]), self._limit, call, inputs.device):
            rows = [output_rows(layer, y, places) for layer, y in zip(self._layers.values(), aimed, strict=True)]
            self.add(input_rows(first, inputs, places), rows)

    def add(self, inputs: Tensor, outputs: Sequence[Tensor]) -> None:
        """Adds rows.

        Args:
            inputs: [rows, g, n], as `input_rows` gives them.
            outputs: for each layer [rows, out], what it should give for them, its bias counted in.

        Raises:
            InputError: names a layer; values that are NaN or infinite.
        """
        sound = bool(torch.isfinite(inputs).all())
        for name, output in zip(self._layers, outputs, strict=True):
            if not (sound and bool(torch.isfinite(output).all())):
                raise InputError(
                    f"{name}: got NaN or infinite activations while calibrating, wanted finite ones: "
                    "check the model, or calibrate in float32"
                )
        x = inputs.float().transpose(0, 1)
        y = torch.cat(list(outputs), 1).float().unflatten(1, self._output_sum.shape).transpose(0, 1)
        if self._inputs.dtype == torch.float32:
            self._inputs.baddbmm_(x.transpose(1, 2), x)
        else:
            self._inputs += x.transpose(1, 2) @ x
        self._cross += y.transpose(1, 2) @ x
        self._input_sum += x.sum(1)
        self._output_sum += y.sum(1)
        self._energy += y.square().sum(1)
        self._count += len(inputs)

    def moments(self) -> dict[str, Moments]:
        """Each layer's means. The sums are used up.

        Raises:
            InputError: nothing was added.
        """
        count, begin, found = self._count, 0, {}
        if not count:
            raise InputError(f"{next(iter(self._layers))}: got no activations, wanted some to calibrate with")
        inputs, mean = self._inputs.div_(count), self._input_sum.div_(count)
        crosses, output_means, energies = (
            self._cross.div_(count),
            self._output_sum.div_(count),
            self._energy.div_(count),
        )
        centred: Tensor | None = None
        for name, layer in self._layers.items():
            part = slice(begin, begin + len(layer.weight) // len(inputs))
            begin = part.stop
            cross, output_mean, energy = crosses[:, part], output_means[:, part], energies[:, part]
            if layer.bias is None:
                found[name] = Moments(inputs, cross, mean, output_mean, energy, count)
                continue
            if centred is None:
                shared = inputs.clone() if len(self._layers) > 1 else inputs
                centred = shared.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)
            cross.baddbmm_(output_mean[:, :, None], mean[:, None, :], alpha=-1)
            varying = energy - output_mean.square()
            energy = torch.where(varying > _ROUNDING * energy, varying, 0.0)
            found[name] = Moments(centred, cross, mean, output_mean, energy, count)
        return found


def _places(rows: int, limit: int, call: int, device: torch.device) -> tuple[Tensor, ...]:
    """`limit` of the rows' indices by chance, the same every time, or all of them; `ROWS` together."""
    chosen = torch.arange(rows)
    if rows > limit:
        generator = torch.Generator("cpu").manual_seed(call)
        chosen = torch.randperm(rows, generator=generator)[:limit].sort().values
    return chosen.to(device).split(ROWS)


def with_guided(tensor: Tensor, mixture: tuple[float, float] | None) -> Tensor:
    """A layer's inputs or outputs, and below them the mixtures that guidance makes of their halves.

    A layer is linear: of mixed inputs it gives mixed outputs, and its bias once, since the weights sum to 1. Guidance
    multiplies what the halves differ in; with the mixtures among the rows, that part counts as it does in a sampler.

    Args:
        tensor: [2 n, ...].
        mixture: see `Call.guided`; None leaves the tensor alone.

    Returns:
        [3 n, ...], or what was given where it has no halves.
    """
    if mixture is None or len(tensor) % 2:
        return tensor
    first, second = tensor.chunk(2)
    return torch.cat([tensor, mixture[0] * first + mixture[1] * second])


def row_count(layer: nn.Linear | nn.Conv2d, output: Tensor) -> int:
    """The input vectors behind an output: places of a convolution, tokens of a linear layer, times the batch."""
    return output.numel() // len(layer.weight)


def input_rows(layer: nn.Linear | nn.Conv2d, inputs: Tensor, places: Tensor | None = None) -> Tensor:
    """The vectors that the layer's weights are multiplied with.

    Args:
        layer: a Linear or Conv2d of any geometry.
        inputs: what it was called with: [..., in] or [batch, in, h, w].
        places: indices of the rows wanted, as `output_rows` orders them; None: all.

    Returns:
        [rows, g, n]; a linear layer has one group, a convolution n = in / g * kh * kw.
    """
    if isinstance(layer, nn.Linear):
        rows = inputs.reshape(-1, layer.in_features)
        return (rows if places is None else rows[places])[:, None]
    image = inputs if inputs.dim() == 4 else inputs[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    image = functional.pad(image, layer._reversed_padding_repeated_twice, mode=mode)
    (high, wide), (down, right), (skip, leap) = layer.kernel_size, layer.stride, layer.dilation
    windows = image.unfold(2, (high - 1) * skip + 1, down).unfold(3, (wide - 1) * leap + 1, right)
    windows = windows[..., ::skip, ::leap].permute(0, 2, 3, 1, 4, 5)  # [batch, h, w, in, kh, kw], a view
    if places is None:
        rows = windows.flatten(0, 2)
    else:
        _, height, width = windows.shape[:3]
        area = height * width
        rows = windows[places // area, places % area // width, places % width]
    return rows.reshape(len(rows), layer.groups, -1)


def output_rows(layer: nn.Linear | nn.Conv2d, output: Tensor, places: Tensor | None = None) -> Tensor:
    """[rows, out] of a layer's output, [..., out] or [batch, out, h, w]; rows as in `input_rows`."""
    if isinstance(layer, nn.Conv2d):
        output = (output if output.dim() == 4 else output[None]).permute(0, 2, 3, 1)
    rows = output.reshape(-1, len(layer.weight))
    return rows if places is None else rows[places]
