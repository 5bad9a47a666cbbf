"""bench.json: what was measured, on what, and how."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import torch
from pydantic import Field

from bitsfusion.io.schema import Checked


class Dtype(str, Enum):
    """A floating type by its short name."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def torch(self) -> torch.dtype:
        """As torch calls it."""
        return {Dtype.FP32: torch.float32, Dtype.BF16: torch.bfloat16, Dtype.FP16: torch.float16}[self]


class BenchSettings(Checked):
    """How to measure.

    Fields:
        dtype: what every method but the float32 reference computes in.
        latent, batch: of the sample, [batch, in_channels, latent, latent].
        repeats: timed forwards of each method.
        threads: of each process.
        memory_bytes: what the processes that are timed in turn may hold together.
    """

    dtype: Dtype = Dtype.BF16
    latent: int = 32
    batch: int = 2
    repeats: int = 7
    threads: int
    memory_bytes: int


class BenchRow(Checked):
    """One method. What it could not do is None, and `error` says why.

    Fields:
        name, library, version, settings: the method, and what was asked of it.
        error: the reason, in one line, why something below is missing.
        bytes_on_disk: of every file of its folder, saved its own way.
        bytes_in_memory: of all parameters and buffers.
        bits_on_disk: 8 x bytes_on_disk over all Linear and Conv2d weights of the dense model.
        bits_in_memory: the same with what the layers hold in memory, biases left out.
        weights: of all Linear and Conv2d layers of the dense model.
        weights_quantized, weights_dense, weights_removed: the three kinds they fall into here; they add up.
        dense_layers: how many layers are left dense.
        sqnr_db: 10 log10 (sum w^2 / sum (w - w')^2) over all layers that are there, w the float32 weight and w' what is
            computed with; None without any error.
        sqnr_db_by_layer: the same, layer by layer.
        output_error: relative L2 distance of the model's output from the float32 model's.
        output_error_dense: the same from the dense model's in the dtype measured.
        prepare_seconds, prepare_peak_rss: of quantizing and saving, where that was done here.
        load_seconds: from disk to a model that can run; libraries imported, files in the page cache.
        rss_before_load, peak_rss: bytes, of a fresh process that loads and runs one forward.
        forward_seconds: of every timed forward, in turn with the other methods of the same group.
        forward_median: their median.
        forward_ratio: median over the rounds of this method's time by the dense model's in the same round.
        timed_with: the methods whose forwards took turns with these.
    """

    name: str
    library: str
    version: str | None
    settings: dict[str, Any]
    error: str | None = None
    bytes_on_disk: int | None = None
    bytes_in_memory: int | None = None
    bits_on_disk: float | None = None
    bits_in_memory: float | None = None
    weights: int | None = None
    weights_quantized: int | None = None
    weights_dense: int | None = None
    weights_removed: int | None = None
    dense_layers: int | None = None
    sqnr_db: float | None = None
    sqnr_db_by_layer: dict[str, float | None] = Field(default_factory=dict)
    output_error: float | None = None
    output_error_dense: float | None = None
    prepare_seconds: float | None = None
    prepare_peak_rss: int | None = None
    load_seconds: float | None = None
    rss_before_load: int | None = None
    peak_rss: int | None = None
    forward_seconds: tuple[float, ...] = ()
    forward_median: float | None = None
    forward_ratio: float | None = None
    timed_with: tuple[str, ...] = ()


class BenchResult(Checked):
    """The whole file.

    Fields:
        machine: see `machine_facts`.
        inputs: folder, model, hashes of both, the time step, the hash of the forward's inputs.
        not_installed: peers that were not measured because their library is not there.
    """

    schema_version: Literal[1] = 1
    machine: dict[str, Any]
    inputs: dict[str, Any]
    settings: BenchSettings
    not_installed: tuple[str, ...] = ()
    rows: tuple[BenchRow, ...]
