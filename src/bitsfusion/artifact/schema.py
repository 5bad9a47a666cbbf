"""What a packed folder says about itself: `quantization_config` of its config.json. Specified in docs/format.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, ValidationError, computed_field, model_validator

from bitsfusion.artifact.container import NAME, NAME_LENGTH, StoredTensor
from bitsfusion.artifact.limits import JSON_DEPTH, shown
from bitsfusion.errors import ArtifactError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.schema import Checked
from bitsfusion.packing.accounting import LayerSize, average_bits

QUANT_METHOD = "bitsfusion"
FORMAT_VERSIONS = (1, 2)
"""The versions that are read. A folder is written in the oldest one that can express it, for older readers."""

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
PACKED_SUFFIX = ".packed"
ROWS_TENSOR = "time_proj.rows"
TIME_TENSORS = (ROWS_TENSOR, "time_proj.mean", "time_proj.basis", "time_proj.curve")
"""The tensors of stored time features, all float16."""

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
LayerName = Annotated[str, Field(pattern=NAME, max_length=NAME_LENGTH)]
Size = Annotated[int, Field(strict=True, ge=1, lt=1 << 31)]
Natural = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Integer = Annotated[int, Field(strict=True, gt=-(1 << 31), lt=1 << 31)]
Fraction = Annotated[float, Field(strict=True, gt=-(1 << 31), lt=1 << 31)]
Shape = Annotated[tuple[Size, ...], Field(min_length=2, max_length=5)]


class PackedEntry(Checked):
    """One packed layer: b, the weight's shape, and the SHA-256 of its buffer as in memory (scales, radix bytes)."""

    bits: Annotated[int, Field(strict=True, ge=1, le=8)]
    shape: Shape
    sha256: Sha256

    @property
    def size(self) -> LayerSize:
        return LayerSize(self.bits, math.prod(self.shape), self.shape[0])


class SamplerEntry(Checked):
    """A sampler whose time steps are stored."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_+-]{1,64}$")]
    steps: Size


class TimeFeaturesEntry(Checked):
    """How the time step reaches the blocks: rows cached for some steps, or time layers packed at 8 bits for any step.

    `none` is for models without a time step. A fractional step is a float32 number.
    """

    kind: Literal["cached", "layers_8bit", "none"]
    steps: tuple[Natural | Fraction, ...] = ()
    samplers: tuple[SamplerEntry, ...] = ()
    channels: Natural = 0

    @model_validator(mode="after")
    def _consistent(self) -> TimeFeaturesEntry:
        cached = self.kind == "cached"
        if cached != bool(self.steps) or cached != bool(self.channels) or (self.samplers and not cached):
            raise ValueError("steps and channels belong to cached time features, and to them only")
        if len(set(self.steps)) != len(self.steps):
            raise ValueError("a time step is listed twice")
        for step in self.steps:
            if isinstance(step, float) and (step.is_integer() or float(np.float32(step)) != step):
                raise ValueError(f"got time step {step!r}, wanted a whole number, or a fraction in float32")
        return self

    @property
    def values(self) -> int:
        """The number of stored values, N_tf."""
        return len(self.steps) * self.channels

    @property
    def version(self) -> Literal[1, 2]:
        """The format version that introduced such an entry."""
        return 2 if any(isinstance(step, float) for step in self.steps) else 1


class TimeBasisEntry(Checked):
    """Time features of every step: `rank` directions and a cubic spline of `points` control points for each.

    The splines' knots begin at time step `start` and are `spacing` apart, so that `points` - 3 intervals are covered.
    `error` is the relative error over all integer steps.
    """

    kind: Literal["basis"]
    channels: Size
    rank: Size
    points: Annotated[int, Field(strict=True, ge=4, lt=1 << 31)]
    start: Integer
    spacing: Size
    error: Annotated[float, Field(strict=True, ge=0, le=1)]

    @property
    def steps(self) -> tuple[int, ...]:
        """Always empty: no step has a row of its own."""
        return ()

    @property
    def values(self) -> int:
        """The number of stored values, N_tf."""
        return self.channels * (1 + self.rank) + self.points * self.rank

    @property
    def version(self) -> Literal[1, 2]:
        """The format version that introduced such an entry."""
        return 2


TimeFeatures: TypeAlias = Annotated[TimeFeaturesEntry | TimeBasisEntry, Field(discriminator="kind")]


class PackedConfig(Checked):
    """The whole `quantization_config`.

    Fields:
        layers: every Linear, Conv2d and (of a text encoder) Embedding that is kept, in module order.
        removed: the time layers that stored features replace, with their weights' shapes; empty without features.
        others_sha256: over every tensor that is no packed layer (see `payload.others_hash`).
        source_sha256: of what the model was made from, where known.
        provenance: free notes of the writer; not interpreted.
        config_sha256: over all of the above but provenance, so that a changed bit width or time step is found.
    """

    quant_method: Literal["bitsfusion"] = "bitsfusion"
    format_version: Literal[1, 2] = 1
    layers: dict[LayerName, PackedEntry]
    removed: dict[LayerName, Shape] = Field(default_factory=dict)
    time_features: TimeFeatures
    others_sha256: Sha256
    source_sha256: Sha256 | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bounded(self) -> PackedConfig:
        if not self.weights:
            raise ValueError("got no layers, wanted at least one")
        if self.format_version != self.time_features.version:
            kind, version = self.time_features.kind, self.time_features.version
            raise ValueError(f"got {kind} time features in format_version {self.format_version}, wanted {version}")
        if _deeper(self.provenance, JSON_DEPTH):
            raise ValueError(f"provenance: got more than {JSON_DEPTH} levels of nesting")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def config_sha256(self) -> str:
        return _content_hash(self.model_dump(mode="json", exclude={"config_sha256"}))

    @property
    def bits(self) -> dict[str, int]:
        """layer -> b."""
        return {name: entry.bits for name, entry in self.layers.items()}

    @property
    def weights(self) -> dict[str, int]:
        """layer -> number of weights, the removed layers included: the paper's N_w is their sum."""
        kept = {name: entry.size.weights for name, entry in self.layers.items()}
        return kept | {name: math.prod(shape) for name, shape in self.removed.items()}

    @property
    def feature_values(self) -> int:
        """The number of stored values of time features, N_tf."""
        return self.time_features.values

    @property
    def stores_features(self) -> bool:
        """Whether time features are stored; the time layers are then removed."""
        return self.feature_values > 0

    @property
    def average_bits(self) -> float:
        """Appendix H's average."""
        return average_bits(self.weights, self.bits, self.feature_values)


def parse_config(values: Any) -> PackedConfig:
    """Checks a `quantization_config` read from a file.

    Keys that begin with an underscore are diffusers' own notes and are ignored.

    Raises:
        ArtifactError: another method or version, a key that is not known, a value out of range, or another hash.
    """
    if not isinstance(values, dict) or values.get("quant_method") != QUANT_METHOD:
        got = values.get("quant_method") if isinstance(values, dict) else None
        raise ArtifactError(f"quantization_config: got quant_method {_small(got)}, wanted {QUANT_METHOD!r}")
    version = values.get("format_version")
    if type(version) is not int or version not in FORMAT_VERSIONS:
        wanted = " or ".join(str(known) for known in FORMAT_VERSIONS)
        raise ArtifactError(
            f"quantization_config: got format_version {_small(version)}, wanted {wanted}: "
            "a newer bitsfusion may read it"
        )
    content = {key: value for key, value in values.items() if not key.startswith("_")}
    wanted = content.pop("config_sha256", None)
    try:
        config = PackedConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = shown(".".join(str(part) for part in first["loc"]))
        message = shown(first["msg"].removeprefix("Value error, "))
        raise ArtifactError(f"quantization_config: {f'{place}: ' if place else ''}{message}") from None
    got = _content_hash(content)
    if got != wanted:
        raise ArtifactError(f"quantization_config: got content of SHA-256 {got}, wanted {_small(wanted)}")
    return config


def _content_hash(values: Mapping[str, Any]) -> str:
    return sha256_json({key: value for key, value in values.items() if key != "provenance"})


def _small(value: Any) -> str:
    """A string or an ordinary number as it is; of anything else, its type."""
    plain = isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) < 1 << 63)
    return shown(repr(value), 80) if plain or value is None else f"a {type(value).__name__}"


def _deeper(value: Any, depth: int) -> bool:
    """Whether plain JSON is nested more than `depth` levels deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(item, depth - 1) for item in inner)


def stored_tensor(name: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor that is no packed layer, or a packed layer's buffer, by its name: bytes, float16 or float32."""
    if name.endswith(PACKED_SUFFIX):
        return StoredTensor("U8", shape, math.prod(shape))
    if name in TIME_TENSORS:
        return StoredTensor("F16", shape, 2 * math.prod(shape))
    return StoredTensor("F32", shape, 4 * math.prod(shape))
