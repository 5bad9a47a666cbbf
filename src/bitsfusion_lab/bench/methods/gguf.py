"""GGUF files: blocks of linear weights; other matrices in 16 bits, as the tools that write such files do."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from bitsfusion_lab.bench.methods.base import Method, load_dense, model_class
from bitsfusion_lab.bench.methods.q2_k import encode_q2_k

GGUF_TYPES = ("q2_k", "q4_0", "q8_0")
_FILE = "unet.gguf"


class Gguf(Method):
    """See `Method`. The library's encoders write the file (ours for Q2_K: it has none), diffusers reads it."""

    library = "gguf"

    def __init__(self, kind: str) -> None:
        own = {"encoder": "bitsfusion"} if kind == "q2_k" else {}
        super().__init__(f"gguf-{kind}", linear=kind.upper(), **{"other matrices": "F16", "vectors": "F32", **own})

    def warm_up(self) -> None:
        import diffusers.quantizers.gguf.utils  # noqa: F401

    def prepare(self, source: Path, out: Path, dtype: torch.dtype) -> None:
        import gguf

        kind = gguf.GGMLQuantizationType[self.settings["linear"]]
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        model = load_dense(source, torch.float32)
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        writer = gguf.GGUFWriter(out / _FILE, "unet")
        for name, tensor in model.state_dict().items():
            if name in linear and tensor.shape[1] % block == 0:
                own = kind is gguf.GGMLQuantizationType.Q2_K
                blocks = encode_q2_k(tensor).numpy() if own else gguf.quants.quantize(tensor.numpy(), kind)
                writer.add_tensor(name, blocks, raw_dtype=kind)
            else:
                writer.add_tensor(name, (tensor.half() if tensor.dim() > 1 else tensor).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        shutil.copy(source / "config.json", out / "config.json")

    def load(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        from diffusers import GGUFQuantizationConfig

        model: nn.Module = model_class(folder).from_single_file(
            str(folder / _FILE),
            config=str(folder),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
        )
        return model.eval()

    def weight(self, layer: nn.Module) -> Tensor:
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        weight: Tensor = dequantize_gguf_tensor(layer.weight)
        return weight
