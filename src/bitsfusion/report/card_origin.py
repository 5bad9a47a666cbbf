"""Where a packed folder comes from, told by the folder itself: its recipe, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import layer_role
from bitsfusion.artifact.reader import PackedFolder, open_components, open_folder
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.packing.accounting import average_bits
from bitsfusion.recipe.schema import Recipe

_OTHERS = {"text_encoder": "--text-encoder", "vae": "--vae"}


def packed_recipe(config: PackedConfig, model: str) -> Recipe | None:
    """The bits of a packed denoiser as a recipe that `bitsfusion init --recipe` takes.

    None where stored features stand for more than time layers (the modulation of transformers): a recipe has bits for
    those, and the folder no longer knows them.
    """
    if any(layer_role(name) is not LayerRole.TIME for name in config.removed):
        return None
    provenance = config.provenance
    return Recipe(
        model=model,
        source_sha256=None,
        strategy=str(provenance.get("recipe", "trained")),
        target_bits=provenance.get("target_bits"),
        average_bits=average_bits(config.weights, config.bits, config.feature_values),
        feature_values=config.feature_values,
        bits=config.bits,
        removed=list(config.removed),
        weights=config.weights,
        provenance={"config_sha256": config.config_sha256},
    )


def packed_command(folder: Path, model: str, recipe: str | None) -> str:
    """The command that makes a packed pipeline's folder from `model`, by what its components say of their making.

    Args:
        recipe: the file of `packed_recipe` beside the card, if there is one.
    """
    denoiser = open_folder(folder)
    said = denoiser.config.provenance
    out = ["--out", folder.resolve().name]
    if "checkpoint" in said:
        words = ["bitsfusion", "pack", str(said["checkpoint"]), "--model", model]
        return shlex.join([*words, *_cover(denoiser), *_scales(said), *_others(folder), *out])
    words = ["bitsfusion", "init", model, *(["--recipe", recipe] if recipe else _bits(said))]
    return shlex.join([*words, *_method(said), *_cover(denoiser), *_scales(said), *_others(folder), *out])


def _bits(said: Mapping[str, Any]) -> list[str]:
    if "target_bits" in said:
        return ["--bits", f"{said['target_bits']:g}"]
    recipe = str(said.get("recipe", "RECIPE"))
    return ["--recipe", Path(recipe).name]


def _method(said: Mapping[str, Any]) -> list[str]:
    calibration = said.get("calibration")
    if isinstance(calibration, Mapping):
        numbers = {f"--calibration-{name}": calibration.get(name) for name in ("samples", "steps")}
        return ["--calibrate", *(word for name, value in numbers.items() if value for word in (name, str(value)))]
    return ["--scale-init", str(said["scale_init"])] if "scale_init" in said else []


def _cover(denoiser: PackedFolder) -> list[str]:
    features = denoiser.config.time_features
    if features.kind == "cached":
        covers = [f"{sampler.name}:{sampler.steps}" for sampler in features.samplers]
    else:
        kept = features.kind == "none" and getattr(denoiser.architecture, "timing", None) is not None
        covers = ["any"] if kept or features.kind == "layers_8bit" else []
    return [word for cover in covers for word in ("--cover", cover)]


def _scales(said: Mapping[str, Any]) -> list[str]:
    return ["--scale-dtype", str(said["scale_dtype"])] if "scale_dtype" in said else []


def _others(folder: Path) -> list[str]:
    """Of the components beside the denoiser."""
    words: list[str] = []
    for name, packed in open_components(folder).items():
        said = packed.config.provenance
        if (option := _OTHERS.get(name)) is None or "recipe" not in said:
            continue
        words += [option, f"{said['target_bits']:g}" if "target_bits" in said else Path(str(said["recipe"])).name]
        if "token_embedding" in said:
            words += ["--token-embedding", str(said["token_embedding"])]
    return words
