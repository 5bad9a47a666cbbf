"""The node, by ComfyUI's contract for custom nodes and its loader of diffusion models from state dicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import torch

from bitsfusion.exporting.original import original_tensors

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
PLACE = "diffusers"
"""ComfyUI's name for the folders where pipelines of diffusers lie."""
CONFIGS = (*(f"{name}/config.json" for name in ("unet", "transformer")), "config.json")


def packed_folders() -> dict[str, Path]:
    """Relative name -> folder, of every packed pipeline or denoiser in ComfyUI's folders of diffusers models."""
    found = {}
    for place in map(Path, folder_paths.get_folder_paths(PLACE)):
        for index in sorted([*place.glob("**/model_index.json"), *place.glob("*/config.json")]):
            folder = index.parent
            if any(_is_packed(folder / name) for name in CONFIGS):
                found.setdefault(folder.relative_to(place).as_posix(), folder)
    return found


def _is_packed(config: Path) -> bool:
    if not config.is_file():
        return False
    quantization = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
    return quantization.get("quant_method") == "bitsfusion"


class BitsFusionLoader:
    """Unpacks a denoiser into ComfyUI's own model of its architecture: adapters and offloading work as always."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "loaders"
    DESCRIPTION = "Loads the UNet or transformer of a folder packed by bitsfusion."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"folder": (list(packed_folders()),), "dtype": (list(DTYPES),)}}

    def load(self, folder: str, dtype: str) -> tuple[Any]:
        """A tuple of one ModelPatcher."""
        known = packed_folders()
        if folder not in known:
            raise ValueError(f"bitsfusion: got {folder!r}, wanted one of {', '.join(known) or 'none: there are none'}")
        tensors = original_tensors(known[folder], DTYPES[dtype])
        model = comfy.sd.load_diffusion_model_state_dict(tensors, model_options={"dtype": DTYPES[dtype]})
        if model is None:
            raise ValueError(f"bitsfusion: {folder}: ComfyUI does not know a model with these layers")
        return (model,)


NODE_CLASS_MAPPINGS = {"BitsFusionLoader": BitsFusionLoader}
NODE_DISPLAY_NAME_MAPPINGS = {"BitsFusionLoader": "Load packed model (bitsfusion)"}
