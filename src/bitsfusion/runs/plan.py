"""`bitsfusion plan`: what a model will take once it is packed, from its config.json files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from bitsfusion.architectures.base import Architecture
from bitsfusion.architectures.layers import FIXED_BITS, LayerInfo, LayerRole
from bitsfusion.architectures.registry import architecture_of, model_layers
from bitsfusion.artifact.expected import ExpectedSize, expected_size
from bitsfusion.artifact.model_config import named_architecture
from bitsfusion.artifact.schema import TimeBasisEntry, TimeFeatures, TimeFeaturesEntry
from bitsfusion.artifact.skeleton import empty_model
from bitsfusion.artifact.writer import basis_entry
from bitsfusion.diffusion.samplers import cover
from bitsfusion.diffusion.time_features import BASIS, Cover, expected_basis
from bitsfusion.diffusion.time_features.fit import EXPECTED_RANK, MODULATION_RANK, layer_values
from bitsfusion.diffusion.time_features.layers import time_layers, time_outputs_width, uncacheable
from bitsfusion.diffusion.time_features.modulation import time_bits, timing_of
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.packing.accounting import FileBytes
from bitsfusion.pipelines.folder import Component, PipelineFolder
from bitsfusion.pipelines.resolve import resolve_configs
from bitsfusion.pipelines.weight_files import preferred
from bitsfusion.recipe.assign import assign
from bitsfusion.recipe.named import recipe_bits
from bitsfusion.runs.components import WHOLE, OtherBits, component_bits
from bitsfusion.sensitivity.weight_error import gaussian_error_table

DEFAULT_BITS = 1.99
_HALF = 2  # bytes of a weight in 16 bits


@dataclass(frozen=True)
class LayerPlan:
    """A layer that is packed or removed.

    Fields:
        role, kind: see `LayerInfo`.
        bits: b; None where time features stand for the layer.
        bytes: expected on disk, scales included.
    """

    name: str
    role: LayerRole
    kind: str
    shape: tuple[int, ...]
    weights: int
    bits: int | None
    bytes: int


@dataclass(frozen=True)
class TimePlan:
    """What the time step alone decides.

    Fields:
        layers, weights: that stored features stand for.
        values_per_step: their outputs.
        rank: directions of the basis, as trained models need them; 0 where steps are stored exactly.
        bytes: of the stored features.
        saved: bytes that the layers would take at 8 bits, of a transformer at 2, less `bytes`.
    """

    layers: int
    weights: int
    values_per_step: int
    rank: int
    bytes: int
    saved: int


@dataclass(frozen=True)
class PackedPlan:
    """A component once packed.

    Fields:
        average_bits: by Appendix H.
        bytes: expected, of weight file and config.json; within 3 % on trained models whose layers have some thousands
            of weights and more.
        bytes_at_most: which no weights exceed.
        bytes_in_memory: packed buffers and all else, exact.
        file: where the bytes of the weight file are.
        time: what is removed; None where all layers stay.
        layers: in module order.
        notes: in plain words, what is not as asked, or assumed.
    """

    average_bits: float
    bytes: int
    bytes_at_most: int
    bytes_in_memory: int
    file: FileBytes
    time: TimePlan | None
    layers: tuple[LayerPlan, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComponentPlan:
    """One component of the pipeline that has weights.

    Fields:
        weights: all its parameters; None for a class that cannot be built here.
        bytes_dense: of its weights as they are: by the index of their shards or their files where there are such, else
            at 16 bits each; None as `weights`.
        packed: None for classes that are not packed.
        denoiser: whether it is what `init` packs without `--whole`.
    """

    name: str
    class_name: str
    weights: int | None
    bytes_dense: int | None
    packed: PackedPlan | None
    denoiser: bool


@dataclass(frozen=True)
class PipelinePlan:
    """What a model will take. Tokenizers and schedulers, a few MB of text, are not counted.

    Fields:
        model: as it was named.
        class_name: of the pipeline; None for a model alone.
        components: those with weights.
    """

    model: str
    class_name: str | None
    components: tuple[ComponentPlan, ...]

    @property
    def denoiser(self) -> ComponentPlan:
        """What the average bits are of."""
        return next(component for component in self.components if component.denoiser)

    @property
    def bytes_dense(self) -> int:
        """All components as they are; those that cannot be counted count 0."""
        return sum(component.bytes_dense or 0 for component in self.components)

    @property
    def bytes_packed(self) -> int:
        """With the denoiser packed: what `init` writes."""
        return sum(_bytes(component, component.denoiser) for component in self.components)

    @property
    def bytes_whole(self) -> int:
        """With all packed that can be: what `init --whole` writes."""
        return sum(_bytes(component, True) for component in self.components)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with the sums."""
        values = asdict(self)
        for component, plain in zip(self.components, values["components"], strict=True):
            if component.packed is not None:
                plain["packed"]["file"]["total"] = component.packed.file.total
                for layer in plain["packed"]["layers"]:
                    layer.update(role=layer["role"].value, shape=list(layer["shape"]))
        sums = {name: getattr(self, name) for name in ("bytes_dense", "bytes_packed", "bytes_whole")}
        return {"schema_version": 1, **values, **sums}


def _bytes(component: ComponentPlan, packed: bool) -> int:
    if packed and component.packed is not None:
        return component.packed.bytes
    return component.bytes_dense or 0


def plan(
    model: str,
    bits: float = DEFAULT_BITS,
    recipe: str | None = None,
    *,
    samplers: Cover = BASIS,
    others: OtherBits = WHOLE,
) -> PipelinePlan:
    """Layers, roles and bytes of a model's components once packed, from config.json files alone.

    Models are built on the meta device: no weights are fetched, read or allocated.

    Args:
        model: a folder with at least the JSON files, a hub id, of which only JSON files are fetched, or `embedded`.
        bits: average bits of the denoiser (Appendix H), spread as `init --bits` does for Gaussian weights.
        recipe: in the place of `bits`; see `recipe_bits`.
        samplers: what is stored of time features. Of a basis the rank is assumed to be that of trained models.
        others: the bits of text encoders and VAE.

    Raises:
        InputError: no such model, bits that cannot be met, or a recipe that does not fit.
        ArtifactError: a config.json that its class refuses.

    Example:
        >>> planned = plan("embedded", bits=1.99)
        >>> round(planned.denoiser.packed.average_bits, 2)
        1.99
    """
    folder = resolve_configs(model)
    denoiser = folder.denoiser
    planned = []
    for component in folder.components:
        config = component.folder / "config.json"
        if not config.is_file():
            continue
        content = read_json(config)
        if component is denoiser:
            packed: PackedPlan | None = _denoiser(folder, component, content, bits, recipe, samplers)
        else:
            packed = _other(component, content, others)
        weights = _parameters(component, content)
        if weights is not None:
            dense = _dense_bytes(component)
            dense = _HALF * weights if dense is None else dense
        planned.append(
            ComponentPlan(
                component.name or component.class_name,
                component.class_name,
                weights,
                None if weights is None else dense,
                packed,
                component is denoiser,
            )
        )
    return PipelinePlan(model, folder.class_name, tuple(planned))


def _denoiser(
    folder: PipelineFolder,
    component: Component,
    config: Mapping[str, Any],
    bits: float,
    recipe: str | None,
    samplers: Cover,
) -> PackedPlan:
    model = empty_model(config)
    layers = model_layers(model)
    entry, note = _time_entry(model, samplers, folder)
    removed = {name: layers[name].shape for name in time_layers(model)} if entry.values else {}
    layers |= {name: replace(layers[name], role=LayerRole.TIME) for name in removed}
    if recipe is not None:
        chosen = recipe_bits(recipe, layers)
    else:
        values = entry.values if removed else None
        table = gaussian_error_table(layers, model=component.class_name, feature_values=values or 0)
        chosen = dict(assign(table, bits, keep_time_layers=values is None).bits)
    kept = {name: chosen.get(name, FIXED_BITS) for name in layers if name not in removed}
    size = expected_size(config, kept, entry, removed)
    time = None
    if removed:
        weights = sum(layers[name].numel for name in removed)
        rank = entry.rank if isinstance(entry, TimeBasisEntry) else 0
        timed = timing_of(model) is None
        stored = TimeFeaturesEntry(kind="layers_8bit" if timed else "none")
        stays = expected_size(config, kept | dict.fromkeys(removed, time_bits(model)), stored, {})
        in_bits = sum(stays.layers[name] for name in removed)
        features = size.file.time_features
        time = TimePlan(len(removed), weights, time_outputs_width(model), rank, features, in_bits - features)
    said = named_architecture(config).note
    return _packed(size, layers, time, *(each for each in (said, note) if each is not None))


def _time_entry(model: nn.Module, samplers: Cover, folder: PipelineFolder) -> tuple[TimeFeatures, str | None]:
    """What is stored of the time features, as far as that can be known without weights."""
    if not time_layers(model):
        family = architecture_of(model)
        return TimeFeaturesEntry(kind="none"), None if family is None else family.modulation_stays
    reason = uncacheable(model)
    modulation = timing_of(model) is not None
    if modulation and (samplers is None or reason is not None):
        note = None if reason is None else f"modulation layers keep their bits: they depend on more ({reason})"
        return TimeFeaturesEntry(kind="none"), note
    if samplers is None or (samplers == BASIS and reason is not None):
        note = None if reason is None else f"time layers stay, at 8 bits: they depend on more than the step ({reason})"
        return TimeFeaturesEntry(kind="layers_8bit"), note
    width = time_outputs_width(model)
    if samplers != BASIS:
        scheduler = folder.component("scheduler")
        if scheduler is None:
            raise InputError(f"cover: got {folder.path} without a scheduler, wanted its pipeline")
        steps = cover(samplers, read_json(scheduler.folder / "scheduler_config.json")).steps
        return TimeFeaturesEntry(kind="cached", steps=steps, channels=width), None
    basis = expected_basis(width, rank=MODULATION_RANK if modulation else EXPECTED_RANK)
    if modulation and basis.values > layer_values(model):
        return TimeFeaturesEntry(kind="none"), f"modulation layers keep their bits: rank {basis.rank} would take more"
    if modulation:
        return basis_entry(basis), f"assumes time features of rank {basis.rank}, which trained models may not need"
    return basis_entry(basis), f"assumes time features of rank {basis.rank}, as trained models' are"


def _other(component: Component, config: Mapping[str, Any], others: OtherBits) -> PackedPlan | None:
    architecture = component.architecture
    chosen = None if architecture is None else others.of(architecture)
    if architecture is None or chosen is None:
        return None
    model = empty_model(config)

    def spread(layers: Mapping[str, LayerInfo], average: float) -> tuple[dict[str, int], dict[str, Any]]:
        return dict(assign(gaussian_error_table(layers, model=architecture.name), average).bits), {}

    bits, _ = component_bits(model, architecture, chosen, others.token_embedding, spread)
    layers = model_layers(model, architecture)
    return _packed(expected_size(config, bits, TimeFeaturesEntry(kind="none"), {}), layers, None)


def _packed(size: ExpectedSize, layers: Mapping[str, LayerInfo], time: TimePlan | None, *notes: str) -> PackedPlan:
    bits = size.config.bits
    return PackedPlan(
        average_bits=size.config.average_bits,
        bytes=size.total,
        bytes_at_most=size.most,
        bytes_in_memory=size.in_memory,
        file=size.file,
        time=time,
        layers=tuple(
            LayerPlan(name, layer.role, layer.kind, layer.shape, layer.numel, bits.get(name), size.layers.get(name, 0))
            for name, layer in layers.items()
        ),
        notes=notes,
    )


def _parameters(component: Component, config: Mapping[str, Any]) -> int | None:
    """All parameters of a model; None where the class cannot be built from its config alone."""
    library: Literal["diffusers", "transformers"] = "diffusers" if "_class_name" in config else "transformers"
    architecture = component.architecture or Architecture(component.class_name, "model", library, "", ())
    try:
        model = architecture.build({key: value for key, value in config.items() if key != "quantization_config"})
    except Exception:  # constructors raise whatever they meet
        return None
    return sum(tensor.numel() for tensor in model.parameters())


def _dense_bytes(component: Component) -> int | None:
    """What the files of the weights take, as far as small files tell."""
    choice = preferred(component.folder)
    if choice is None:
        return None
    if not choice.index:
        return choice.path.stat().st_size
    size = read_json(choice.path).get("metadata", {}).get("total_size")
    return size if isinstance(size, int) else None
