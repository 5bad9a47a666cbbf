"""A pipeline on disk: its class, its components, and the files that hold them; read once and passed on."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bitsfusion.architectures.base import Architecture, Denoiser
from bitsfusion.architectures.registry import (
    DENOISER_COMPONENTS,
    DENOISER_KINDS,
    architecture_named,
    class_name,
    described,
)
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_file, sha256_folder, sha256_json
from bitsfusion.io.texts import read_json
from bitsfusion.pipelines.weight_files import WeightFiles, weight_files

INDEX = "model_index.json"
"""The file that makes a folder a pipeline: its class, and the library and class of each component."""

README = "README.md"
PICTURES = "card"
CARD = (README, PICTURES)
"""Where a model card lies in the folder: no part of the model, whatever hashes or checks the folder."""

_CONFIG = "config.json"
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_CODE_FREE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


class Form(str, Enum):
    """What kind of folder a model comes in."""

    PIPELINE = "pipeline"
    """A diffusers pipeline: `model_index.json` and a folder for each component."""
    COMPONENT = "component"
    """One model alone: `config.json` and its weights."""
    CHECKPOINT = "checkpoint"
    """A trainer's checkpoint: the trained model's folder beside the optimizer's state."""


@dataclass(frozen=True)
class Component:
    """One component of a pipeline.

    Fields:
        name: in the pipeline; empty for a model alone.
        library: that its class comes from, such as diffusers, transformers, or a pipeline's own module of diffusers.
        class_name: of its class.
        folder: where its files are.
    """

    name: str
    library: str
    class_name: str
    folder: Path

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """Its files without hidden ones, sorted by name. Links are followed."""
        return tuple(sorted(path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")))

    @functools.cached_property
    def weights(self) -> WeightFiles | None:
        """The files that hold its weights, with their variant and shards; None if it has none.

        Raises:
            InputError: as `weight_files`.
        """
        return weight_files(self.folder)

    @property
    def variant(self) -> str | None:
        """The variant in the names of its weight files, such as fp16."""
        return None if self.weights is None else self.weights.variant

    @property
    def architecture(self) -> Architecture | None:
        """The architecture of its class; None for a class that is not packed."""
        return architecture_named(self.class_name)

    @functools.cached_property
    def hashes(self) -> Mapping[str, str]:
        """File name -> SHA-256 in hex."""
        return {file.name: sha256_file(file) for file in self.files}


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline on disk, or the part of one.

    Fields:
        path: the folder.
        form: what it is.
        class_name: of the pipeline's class; None where it is no whole pipeline.
        components: those that have files of their own, in the order of the index.
        index: the content of `model_index.json`; empty where there is none.
    """

    path: Path
    form: Form
    class_name: str | None
    components: tuple[Component, ...]
    index: Mapping[str, Any]

    def component(self, name: str) -> Component | None:
        """The component of a name, if there is one."""
        return next((component for component in self.components if component.name == name), None)

    @property
    def denoiser(self) -> Component:
        """The model that the sampler calls at every step.

        Raises:
            InputError: there is none, or it is of a class that is not packed; says what there is.
        """
        for component in self.components:
            if isinstance(component.architecture, Denoiser):
                return component
        got = self.class_name or "folder"
        if self.form is Form.COMPONENT:
            raise InputError(f"{self.path}: got a {described(self.components[0].class_name)}, wanted {DENOISER_KINDS}")
        for name in DENOISER_COMPONENTS:
            other = self.component(name)
            if other is not None:
                kind = described(other.class_name)
                raise InputError(f"{self.path}: got a {got} whose {name} is a {kind}, wanted {DENOISER_KINDS}")
        classes = ", ".join(component.class_name for component in self.components) or "nothing"
        raise InputError(
            f"{self.path}: got a {got} without a UNet or transformer ({classes}), wanted one with {DENOISER_KINDS}"
        )

    @property
    def optional(self) -> tuple[str, ...]:
        """The components that its class can do without, if it is a class of diffusers."""
        import diffusers

        made: Any = getattr(diffusers, self.class_name or "", None)
        return tuple(getattr(made, "_optional_components", ()))

    @functools.cached_property
    def source_sha256(self) -> str:
        """The SHA-256 over the names and contents of all its files, in hex."""
        if all(self.path in (component.folder, component.folder.parent) for component in self.components):
            return sha256_folder(self.path)
        return sha256_json({component.name: sha256_folder(component.folder) for component in self.components})

    def with_component(self, component: Component) -> PipelineFolder:
        """This pipeline with one component from another place.

        Raises:
            InputError: it has no component of that class.
        """
        for own in self.components:
            if own.class_name == component.class_name and component.name in ("", own.name):
                taken = replace(component, name=own.name)
                others = tuple(taken if each is own else each for each in self.components)
                return replace(self, components=others)
        raise InputError(
            f"{self.path}: got a {self.class_name} without a {component.class_name}, wanted the pipeline that "
            f"{component.folder} belongs to"
        )

    def without(self, names: tuple[str, ...]) -> PipelineFolder:
        """This pipeline with some components left out: those that its class can draw without.

        Raises:
            InputError: it has no such component, or its class needs it.
        """
        if not names:
            return self
        for name in names:
            if self.component(name) is None and name not in self.index:
                have = ", ".join(component.name for component in self.components)
                raise InputError(f"without: got {name!r}, wanted a component of {self.path}: {have}")
            if name not in self.optional:
                can = ", ".join(each for each in self.optional if self.component(each)) or "no component"
                raise InputError(f"without: got {name!r}, but a {self.class_name} can do without {can} only")
        index = dict(self.index) | {name: [None, None] for name in names}
        if "safety_checker" in names and "requires_safety_checker" in index:
            index["requires_safety_checker"] = False
        kept = tuple(component for component in self.components if component.name not in names)
        return replace(self, components=kept, index=index)


def read_folder(path: Path) -> PipelineFolder:
    """Reads what a folder is and what is in it, from its small files alone.

    Raises:
        InputError: no folder that a model comes in, a component without a folder, or code of its own.
    """
    if (path / INDEX).is_file():
        return _pipeline(path)
    if (path / _CONFIG).is_file():
        return _model(path)
    inside = [name for name in DENOISER_COMPONENTS if (path / name / _CONFIG).is_file()]
    if inside:
        return _checkpoint(path, inside[0])
    raise InputError(f"{path}: got a folder without {INDEX}{_instead(path)}, wanted a diffusers pipeline folder")


def _pipeline(path: Path) -> PipelineFolder:
    index: Any = read_json(path / INDEX)
    if not isinstance(index, dict):
        raise InputError(f"{path / INDEX}: got a {type(index).__name__}, wanted an object of components")
    made_by = index.get("_class_name")
    if isinstance(made_by, list):
        raise InputError(
            f"{path}: got a pipeline with code of its own ({'.'.join(str(part) for part in made_by)} in {INDEX}), "
            "wanted a class of diffusers: no code that comes with a model is run"
        )
    components = []
    for name, entry in index.items():
        if name.startswith("_") or not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
            continue  # the pipeline's own options, and components that are left out
        library, kind = entry
        if not isinstance(library, str) or _CODE_FREE.fullmatch(library) is None:
            raise InputError(f"{path / INDEX}: {name}: got library {library!r}, wanted the name of one")
        if _NAME.fullmatch(name) is None or not (path / name).is_dir():
            raise InputError(f"{path}: got no folder of component {name!r}, which {INDEX} lists")
        if (path / name / f"{library}.py").exists():
            raise InputError(
                f"{path}: {name}: got code of its own ({library}.py), wanted a class of diffusers or transformers: "
                "no code that comes with a model is run"
            )
        components.append(Component(name, library, kind, path / name))
    return PipelineFolder(path, Form.PIPELINE, made_by, tuple(components), index)


def _model(path: Path) -> PipelineFolder:
    component = _component("", path)
    return PipelineFolder(path, Form.COMPONENT, None, (component,), {})


def _checkpoint(path: Path, name: str) -> PipelineFolder:
    return PipelineFolder(path, Form.CHECKPOINT, None, (_component(name, path / name),), {})


def _component(name: str, folder: Path) -> Component:
    config: Any = read_json(folder / _CONFIG)
    made_by = class_name(config) if isinstance(config, dict) else None
    if not isinstance(made_by, str):
        raise InputError(f"{folder / _CONFIG}: got no class of a model, wanted _class_name or architectures")
    library = "diffusers" if "_class_name" in config else "transformers"
    return Component(name, library, made_by, folder)


def _instead(path: Path) -> str:
    """A hint at what the folder holds instead."""
    names = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    if "pytorch_lora_weights.safetensors" in names:
        return " but with an adapter (fuse it into its pipeline and save that)"
    if "student.json" in names:
        return " but with a student of this package (`bitsfusion pack` takes it)"
    single = [name for name in names if name.endswith((".safetensors", ".ckpt"))]
    if single:
        return f" but with {', '.join(single[:3])} (a single-file checkpoint is given by its own path)"
    inside = [name for name in names if (path / name / INDEX).is_file()]
    return f" but with {INDEX} in {inside[0]}" if inside else ""
