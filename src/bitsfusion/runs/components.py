"""Text encoders and the VAE of a pipeline's folder, without training: the bits of each, and what is packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.layers import LayerInfo, LayerRole
from bitsfusion.architectures.registry import TEXT_ENCODERS, VAES, model_layers
from bitsfusion.artifact.parts import ModelParts, parts_of_folder
from bitsfusion.calibration.calibrate import Calibration
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_file
from bitsfusion.numerics import ScaleInit, check_bits
from bitsfusion.pipelines.folder import PipelineFolder
from bitsfusion.pipelines.model_folder import ModelFolder, left_out, open_model
from bitsfusion.progress import ProgressSink
from bitsfusion.recipe.assign import assign
from bitsfusion.recipe.named import UNIFORM, is_file, recipe_bits
from bitsfusion.runs.calibration import CALIBRATED
from bitsfusion.sensitivity.weight_error import weight_error_table


@dataclass(frozen=True)
class OtherBits:
    """What is packed beside the UNet.

    `text_encoder` (of every text encoder) and `vae` are each a whole number of bits for all layers, an average such as
    4.5 that is spread by the weights' own errors, uniform:N, or a recipe file; None leaves them as they are. Layers at
    8 bits anyway are those of the role FIRST_LAST in `architectures`.

    Fields:
        token_embedding: bits of a text encoder's token embedding, unless a recipe file has some.
        optional: no error where a pipeline has no such component, or one of another class.
    """

    text_encoder: str | None = None
    vae: str | None = None
    token_embedding: int = 5
    optional: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for bits out of range."""
        check_bits(self.token_embedding, "token embedding")

    def of(self, architecture: Architecture) -> str | None:
        """The bits for models of this class."""
        return self.vae if architecture in VAES else self.text_encoder if architecture in TEXT_ENCODERS else None


UNET_ALONE = OtherBits()

WHOLE = OtherBits(text_encoder="4", vae="5", token_embedding=5, optional=True)
"""The least error below 320 MB on SD-v1.5, with the published recipe for its UNet: see docs/measured/components.md."""

WHOLE_CALIBRATED = OtherBits(text_encoder="3", vae="3", token_embedding=4, optional=True)
"""With calibration: 286 MB on SD-v1.5, images on the embedded model not told apart from `WHOLE`'s; see there."""

Made = tuple[ModelParts, dict[str, Any]]


Calibrator: TypeAlias = Callable[[Mapping[str, Mapping[str, int]]], Mapping[str, Calibration]]
"""From each component's bits to its calibrated layers."""


def other_parts(
    source: PipelineFolder,
    others: OtherBits,
    method: ScaleInit,
    progress: ProgressSink,
    calibrator: Calibrator | None = None,
) -> dict[str, Made]:
    """What is packed beside the denoiser of a pipeline folder: name -> parts and provenance.

    Args:
        calibrator: gives codes, scales and biases of Linear and Conv2d layers in the place of `method`.

    Raises:
        InputError: bits for what the pipeline does not have (unless `optional`), a recipe or a folder that does
            not fit.
    """
    chosen: dict[str, _Chosen] = {}
    wanted = {kind: bits for kind, bits in (("text encoder", others.text_encoder), ("VAE", others.vae)) if bits}
    for component in source.components:
        architecture = component.architecture
        bits = None if architecture is None else others.of(architecture)
        if architecture is not None and bits is not None:
            wanted.pop(architecture.noun, None)
            try:
                opened = open_model(component.folder, architecture)
                chosen[component.name] = _chosen(opened, bits, others, progress)
            except InputError as error:
                raise InputError(f"{component.name}: {error}") from None
    if wanted and not others.optional:
        known = ", ".join(architecture.name for architecture in (*VAES, *TEXT_ENCODERS))
        raise InputError(
            f"{source.path}: got bits for a {next(iter(wanted))}, wanted a pipeline that has one ({known})"
        )
    found = {} if calibrator is None else calibrator({name: bits for name, (_, bits, _) in chosen.items()})
    return {name: _packed(*which, method, found.get(name)) for name, which in chosen.items()}


_Chosen: TypeAlias = tuple[ModelFolder, dict[str, int], dict[str, Any]]  # the folder, its layers' bits, where from


def _chosen(folder: ModelFolder, recipe: str, others: OtherBits, progress: ProgressSink) -> _Chosen:
    bits, provenance = component_bits(
        folder.skeleton,
        folder.architecture,
        recipe,
        others.token_embedding,
        lambda layers, average: by_weight_error(folder, layers, average, progress),
    )
    return folder, bits, provenance


def _packed(
    folder: ModelFolder,
    bits: dict[str, int],
    provenance: dict[str, Any],
    method: ScaleInit,
    calibration: Calibration | None,
) -> Made:
    notes = [note for note in (left_out(folder),) if note is not None]
    notes += calibration.notes if calibration is not None else ()
    found = method.value if calibration is None else CALIBRATED
    provenance |= {"scale_init": found, **({"notes": notes} if notes else {})}
    rounded = None if calibration is None else calibration.layers
    return parts_of_folder(folder, bits, method, rounded=rounded), provenance


def component_bits(
    model: nn.Module,
    architecture: Architecture,
    recipe: str,
    token_embedding: int,
    spread: Callable[[Mapping[str, LayerInfo], float], tuple[dict[str, int], dict[str, Any]]],
) -> tuple[dict[str, int], dict[str, Any]]:
    """Bits for every layer of a text encoder or VAE, and where they come from.

    Args:
        model: on meta will do.
        recipe: see `OtherBits`.
        token_embedding: bits of token embeddings, which are looked up, unless a recipe file has some.
        spread: finds bits for some layers by their average.
    """
    layers = model_layers(model, architecture)
    tokens = {name for name in layers if isinstance(model.get_submodule(name), nn.Embedding)}
    tokens &= {name for name, layer in layers.items() if layer.role is not LayerRole.FIRST_LAST}
    average, of_layers = _average(recipe), False
    if average is not None:
        bits, provenance = spread({name: layer for name, layer in layers.items() if name not in tokens}, average)
    else:
        recipe = f"{UNIFORM}{recipe}" if recipe.isdigit() else recipe
        bits = recipe_bits(recipe, layers)
        provenance, of_layers = {"recipe": recipe}, is_file(recipe)
        if of_layers:
            provenance["recipe_sha256"] = sha256_file(Path(recipe))
    if tokens and not of_layers:
        bits |= dict.fromkeys(tokens, token_embedding)
        provenance["token_embedding"] = token_embedding
    return bits, provenance


def _average(recipe: str) -> float | None:
    """4.5 of "4.5"; None of a whole number of bits and of all else."""
    whole, point, fraction = recipe.partition(".")
    return float(recipe) if point and whole.isdigit() and fraction.isdigit() else None


def by_weight_error(
    folder: ModelFolder, layers: Mapping[str, LayerInfo], bits: float, progress: ProgressSink, values: int | None = None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Bits for every layer by the weights alone, and where they come from.

    Args:
        layers: the layers that share the average.
        values: of time features that are stored; None keeps time layers.
    """
    with progress.timed("weight error") as tell:
        table = weight_error_table(
            layers,
            lambda name: folder.tensor(f"{name}.weight"),
            model=folder.path.parent.name,
            feature_values=values or 0,
            progress=tell,
        )
    recipe = assign(table, bits, keep_time_layers=values is None)
    return dict(recipe.bits), {"recipe": table.method, "target_bits": bits}
