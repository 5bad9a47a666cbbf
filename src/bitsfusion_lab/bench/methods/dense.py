"""The model as it is, in a floating type: what everything else is compared with."""

from __future__ import annotations

from pathlib import Path

import torch

from bitsfusion_lab.bench.bench_file import Dtype
from bitsfusion_lab.bench.methods.base import Method, load_dense

ONE_FILE = "100GB"
"""Shard size that nothing reaches: readers of the folder look for one file."""


class Dense(Method):
    """See `Method`. It is named after the type that it is asked for in; none of its layers is quantized."""

    library = "diffusers"

    def __init__(self, dtype: Dtype) -> None:
        super().__init__(f"dense-{dtype.value}")

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        load_dense(source, dtype).save_pretrained(out, max_shard_size=ONE_FILE)
