"""What a stage will cost before it runs: memory of one GPU and days, from the model's own shapes.

Operations and activations are counted on a forward pass without data (fake tensors). How much of a GPU's peak rate a
training step reaches is an assumption, and part of the plan.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bitsfusion.architectures.registry import denoiser_called
from bitsfusion.diffusion.denoise import denoise
from bitsfusion.training.config import TrainingConfig

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter does not know
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Machine:
    """The GPUs of a plan; rates are of dense 16-bit matrix products and of TF32 ones."""

    name: str = "A100-80GB"
    gpus: int = 8
    memory_bytes: int = 80 * 10**9
    flops_16bit: float = 312e12
    flops_32bit: float = 156e12
    utilisation: float = 0.35
    """The share of the peak rate that a whole training step is assumed to reach."""


MACHINES: Mapping[str, Machine] = {
    "a100": Machine(),
    "rtx4090": Machine("RTX-4090-24GB", 1, 24 * 10**9, 165.2e12, 82.6e12),
}
"""GPUs that a plan can be made for, each with the number that is usual; rates as NVIDIA publishes them."""


@dataclass(frozen=True)
class Forward:
    """One sample's forward pass: floating-point operations, and bytes that the backward pass needs.

    activations: without gradient checkpointing. checkpointed: with it, the inputs of the blocks that are run again,
    the largest block's own, and what lies outside of blocks.
    """

    flops: int
    activations: int
    checkpointed: int


@dataclass(frozen=True)
class Plan:
    """The cost of a stage on a machine. Bytes are of one GPU.

    sharded: weights, gradients, moments and averages in parts over all (FSDP2); else all in full on each (DDP).
    """

    machine: Machine
    parameters: int
    samples_per_step: int
    steps: int
    flops_per_sample: int
    bytes: dict[str, int]
    days: float
    sharded: bool = False

    @property
    def bytes_per_gpu(self) -> int:
        """All of `bytes` together."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether they fit the GPU's memory."""
        return self.bytes_per_gpu <= self.machine.memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "bytes_per_gpu": self.bytes_per_gpu, "fits": self.fits}


def plan_stage(
    model_config: Mapping[str, Any],
    config: TrainingConfig,
    latent_size: int,
    tokens: int,
    machine: Machine | None = None,
) -> Plan:
    """What a stage costs.

    Args:
        model_config: the config.json of a denoiser.
        config: the stage's options, for `machine.gpus` processes.
        latent_size: height and width of the latents.
        tokens: of a prompt.
        machine: eight A100 of 80 GB where not given.

    Raises:
        InputError: total_batch_size does not fit the GPUs.
    """
    machine = machine or Machine()
    samples = config.train_batch_size * config.accumulation(machine.gpus) * machine.gpus
    forward = count_forward(model_config, latent_size, tokens, config.mixed_precision)
    model = denoiser_called(model_config).build(model_config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = parameters if config.trained == "all" else _light(model)
    low = config.mixed_precision != "no"
    parts = machine.gpus if config.shard else 1
    units = denoiser_called(model_config).units(model)
    largest = max(sum(parameter.numel() for parameter in unit.parameters()) for unit in units)
    held = {
        "weights": 4 * parameters // parts,
        "gradients": 4 * trained // parts,
        "moments": (2 if config.use_8bit_adam else 8) * trained // parts,
        "average": 4 * trained // parts if config.ema_decay else 0,
        # One block at work, the next one on its way, and the gradients of the one before.
        "gathered blocks": 3 * 4 * largest if config.shard else 0,
        "teacher": _WIDTH[config.teacher_dtype] * parameters if config.stage == 1 else 0,
        # The backward pass needs the rounded weights; checkpointed blocks make them again, one block at a time.
        "rounded weights": 0 if config.gradient_checkpointing else (2 if low else 4) * parameters,
        "activations": config.train_batch_size
        * (forward.checkpointed if config.gradient_checkpointing else forward.activations),
    }
    passes = 3 + config.gradient_checkpointing + (config.stage == 1)  # forward, twice that backward, again, teacher
    rate = (machine.flops_16bit if low else machine.flops_32bit) * machine.utilisation * machine.gpus
    flops = forward.flops * passes
    days = config.max_train_steps * samples * flops / rate / 86400
    return Plan(machine, parameters, samples, config.max_train_steps, flops, held, days, config.shard)


def _light(model: nn.Module) -> int:
    """Numbers that train in light training: biases, norms, and a scale for each output of a layer."""
    flat = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    return flat + sum(len(part.weight) for part in model.modules() if isinstance(part, (nn.Linear, nn.Conv2d)))


def count_forward(model_config: Mapping[str, Any], latent_size: int, tokens: int, precision: str = "no") -> Forward:
    """Counts one sample's forward pass of a denoiser in its shapes alone; nothing is computed.

    Args:
        model_config: its config.json.
        latent_size: height and width of the latents.
        tokens: of a prompt.
        precision: "no", or the 16-bit type of autocast.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    family = denoiser_called(model_config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = family.build(model_config, "cpu")
        sample, conditioning = family.example(model_config, 1, latent_size, tokens)
        autocast = torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()
        counter = FlopCounterMode(display=False, custom_mapping={_ATTENTION: _attention_flops})
        saved = _Saved(model, family.units(model))
        with saved.watching(), counter, autocast:
            denoise(model, sample, torch.zeros(1), conditioning)
    return Forward(counter.get_total_flops(), saved.total(), saved.checkpointed())


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The products of queries with keys and of the result with values; shapes [batch, heads, places, width]."""
    return int(2 * math.prod(query[:3]) * key[2] * (query[3] + value[3]))


class _Saved:
    """The tensors that autograd keeps, by the checkpointed block they are made in (None: outside of all)."""

    def __init__(self, model: nn.Module, units: Sequence[nn.Module]) -> None:
        self._units = units  # what gradient checkpointing runs again
        self._weights = {_sizes(parameter) for parameter in model.parameters()}
        self._block: nn.Module | None = None
        self._kept: dict[nn.Module | None, dict[int, Tensor]] = {None: {}}
        self._inputs: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what a forward pass inside keeps."""
        handles = []
        for unit in self._units:
            handles.append(unit.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(unit.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def total(self) -> int:
        """Bytes kept without checkpointing."""
        return _bytes({key: tensor for kept in self._kept.values() for key, tensor in kept.items()})

    def checkpointed(self) -> int:
        """Bytes kept with it, at the worst moment of the backward pass."""
        blocks = [_bytes(kept) for block, kept in self._kept.items() if block is not None]
        return _bytes({**self._kept[None], **self._inputs}) + max(blocks, default=0)

    def _enter(self, module: nn.Module, arguments: Any, keywords: Any) -> None:
        self._block = module
        self._kept[module] = {}
        for value in (*arguments, *keywords.values()):
            if isinstance(value, Tensor):
                self._inputs[value.untyped_storage()._cdata] = value

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._block = None

    def _keep(self, tensor: Tensor) -> Tensor:
        if _sizes(tensor) not in self._weights:  # nor their 16-bit copies
            self._kept[self._block][tensor.untyped_storage()._cdata] = tensor
        return tensor


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(size for size in tensor.shape if size > 1))


def _bytes(tensors: dict[int, Tensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
