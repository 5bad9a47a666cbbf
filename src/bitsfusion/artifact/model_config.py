"""What a config.json says its model is, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitsfusion.architectures.base import Architecture, without_steering
from bitsfusion.architectures.registry import ARCHITECTURES, architecture_named, class_name
from bitsfusion.artifact.limits import check_model_config, shown
from bitsfusion.errors import ArtifactError


def named_architecture(model_config: Mapping[str, Any]) -> Architecture:
    """What a config.json says its model is.

    Raises:
        ArtifactError: no class that is packed: a reader builds no other.
    """
    name = class_name(model_config)
    found = architecture_named(name) if isinstance(name, str) else None
    if found is None:
        wanted = " or ".join(ARCHITECTURES)
        raise ArtifactError(f"config.json: got _class_name {shown(repr(name), 80)}, wanted {wanted}")
    return found


def plain_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without its quantization, for a model to be built from.

    Raises:
        ArtifactError: numbers, nesting or keys that no model has.
    """
    plain = {key: value for key, value in model_config.items() if key != "quantization_config"}
    check_model_config(plain)
    if named_architecture(model_config).library == "transformers":
        for key in plain.keys() - without_steering(plain).keys():
            raise ArtifactError(
                f"config.json: got the key {shown(repr(key), 80)}, wanted none that chooses files or code"
            )
    return plain
